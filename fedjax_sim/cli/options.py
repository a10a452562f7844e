"""Options that commands share."""

import argparse
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from fedjax_sim.cli import files
from fedjax_sim.cli.parser import COMMANDS
from fedjax_sim.cli.values import parsed
from fedjax_sim.cli.wording import how_to_assign
from fedjax_sim.results.folder import CONFIGURATION
from fedjax_sim.settings.options import VOCABULARY, Vocabulary

# A user's own data are no name of a data set.
_MORE_FLAGS = {"dataset": ("--data",)}


def add_setting(
    parser: argparse.ArgumentParser,
    vocabulary: Vocabulary = VOCABULARY,
    names: Iterable[str] | None = None,
    helps: Mapping[str, str] | None = None,
) -> None:
    """An option for each of these names, in their order; what is not given is not there.

    Args:
      names: None for all of the vocabulary.
      helps: name -> the help of a command to which the option's own does not apply.
    """
    names = vocabulary.names if names is None else {*names}
    for name, option in vocabulary.options.items():
        if name not in names:
            continue
        flags = [flag_of(name), *_MORE_FLAGS.get(name, ())]
        flags += [] if option.short is None else [option.short]
        how: dict[str, Any] = {"type": reader(name, vocabulary), "metavar": option.metavar}
        if option.kind is bool:
            how = {"action": argparse.BooleanOptionalAction}
        # argparse fills in what stands behind a percent sign.
        text = (helps or {}).get(name, option.help).replace("%", "%%")
        parser.add_argument(*flags, dest=name, default=argparse.SUPPRESS, help=text, **how)


def flag_of(name: str) -> str:
    """The option of a name.

    >>> flag_of("client_lr")
    '--client-lr'
    """
    return f"--{name.replace('_', '-')}"


def reader(name: str, vocabulary: Vocabulary) -> Callable[[str], Any]:
    """What argparse reads the option with."""

    def read(text: str) -> Any:
        try:
            return parsed(name, text, vocabulary)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error).removeprefix(f"{name} ")) from None

    return read


def read(
    command: str,
    options: argparse.Namespace,
    names: Iterable[str] | None = None,
    more: Iterable[str] = (),
) -> dict[str, Any]:
    """What a command runs, by name: of CONFIG, or of what is to be resumed, and options over it.

    Says so if there is nothing to be resumed.

    Args:
      names: those of a setting that the command takes; None for all.
      more: names of its own whose options replace what the file says.

    Raises:
      ValueError: if the file cannot be read, or has a name that the command does not take (whose
        it is, or the nearest); if nothing says what to start.
    """
    found = _config(options)
    options.elsewhere = {*found}  # what an error calls by the name that the file has
    _check_names(command, found, options.vocabulary, names)
    over = {name: value for name, value in vars(options).items() if name in {*more}}
    return found | given(options) | over


def _config(options: argparse.Namespace) -> dict[str, Any]:
    """The values of CONFIG, or of what is to be resumed."""
    there = options.out / CONFIGURATION
    if options.resume and not there.exists():
        if options.config is None and not _say_what_runs(options):
            raise ValueError(
                f"--out {options.out} holds nothing to resume: there is no {CONFIGURATION}; give "
                "CONFIG or options to start it anew"
            )
        print(f"--out {options.out} holds no {CONFIGURATION}: it starts anew", file=sys.stderr)
    config: Path | None = options.config
    if config is None:
        return files.read(there) if options.resume and there.exists() else {}
    if not config.exists():
        flags = [f"--{name.replace('_', '-')}" for name in vars(options)]
        if said := how_to_assign(str(config), flags):
            raise ValueError(f"{config} was taken for CONFIG, a TOML file, and is not there{said}")
    if config.is_dir():
        whole = config / CONFIGURATION
        cure = f"did you mean {whole}?" if whole.exists() else f"it holds no {CONFIGURATION}"
        raise ValueError(f"CONFIG must be a TOML file, and {config} is a folder; {cure}")
    return files.read(config)


def _say_what_runs(options: argparse.Namespace) -> bool:
    others = ("command", "out", "resume", "overwrite", "vocabulary")
    return any(
        value not in (None, []) for name, value in vars(options).items() if name not in others
    )


def _check_names(
    command: str,
    values: Iterable[str],
    vocabulary: Vocabulary,
    names: Iterable[str] | None,
) -> None:
    """Refuses what is no name of a command's file."""
    known = (*(vocabulary.names if names is None else names), *COMMANDS[command].names)
    for name in values:
        whose = [other for other, each in COMMANDS.items() if name in each.names]
        others = [other for other in whose if other != command]
        if name not in known and others:
            raise ValueError(f"{name} belongs to fedjax-sim {' and '.join(others)}")
        vocabulary.check(name, "name", known)


def given(options: argparse.Namespace) -> dict[str, Any]:
    """What was said of a setting by options."""
    known = options.vocabulary.options
    return {name: value for name, value in vars(options).items() if name in known}
