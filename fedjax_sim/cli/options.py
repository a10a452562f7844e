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

# `--data FOLDER` reads better than `--dataset FOLDER` where the data are the user's own.
_MORE_FLAGS = {"dataset": ("--data",)}


def add_setting(
    parser: argparse.ArgumentParser,
    vocabulary: Vocabulary = VOCABULARY,
    names: Iterable[str] | None = None,
    helps: Mapping[str, str] | None = None,
) -> None:
    """Adds an option for each of these names; one that a user omits leaves no attribute behind.

    Args:
      names: None for all of the vocabulary.
      helps: name -> help that replaces the option's own in this command.
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
        # argparse formats help texts by %, so a percent sign is written twice.
        text = (helps or {}).get(name, option.help).replace("%", "%%")
        parser.add_argument(*flags, dest=name, default=argparse.SUPPRESS, help=text, **how)


def flag_of(name: str) -> str:
    """The option of a name.

    >>> flag_of("client_lr")
    '--client-lr'
    """
    return f"--{name.replace('_', '-')}"


def reader(name: str, vocabulary: Vocabulary) -> Callable[[str], Any]:
    """The function by which argparse reads the option's value."""

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
    own_names: Iterable[str] = (),
) -> dict[str, Any]:
    """A command's values by name: those of CONFIG, or of the folder to resume, then its options.

    Tells the user if there is nothing to resume.

    Args:
      names: those of a setting that the command takes; None for all.
      own_names: names of its own whose options replace what the file says.

    Raises:
      ValueError: if the file cannot be read, or has a name that the command does not take (whose
        it is, or the nearest); if nothing says what to start.
    """
    of_file = _config(options)
    options.elsewhere = {*of_file}  # errors call these by the file's names, not by the options'
    _check_names(command, of_file, options.vocabulary, names)
    over = {name: value for name, value in vars(options).items() if name in {*own_names}}
    return of_file | setting_options(options) | over


def _config(options: argparse.Namespace) -> dict[str, Any]:
    """The values of CONFIG, or of the folder that is to be resumed."""
    saved_file = options.out / CONFIGURATION
    if options.resume and not saved_file.exists():
        if options.config is None and not _say_what_runs(options):
            raise ValueError(
                f"--out {options.out} holds nothing to resume: there is no {CONFIGURATION}; give "
                "CONFIG or options to start it anew"
            )
        print(f"--out {options.out} holds no {CONFIGURATION}: it starts anew", file=sys.stderr)
    config: Path | None = options.config
    if config is None:
        return files.read(saved_file) if options.resume and saved_file.exists() else {}
    if not config.exists():
        flags = [f"--{name.replace('_', '-')}" for name in vars(options)]
        if cure := how_to_assign(str(config), flags):
            raise ValueError(f"{config} was taken for CONFIG, a TOML file, and is not there{cure}")
    if config.is_dir():
        whole = config / CONFIGURATION
        cure = f"did you mean {whole}?" if whole.exists() else f"it holds no {CONFIGURATION}"
        raise ValueError(f"CONFIG must be a TOML file, and {config} is a folder; {cure}")
    return files.read(config)


def _say_what_runs(options: argparse.Namespace) -> bool:
    places = ("command", "out", "resume", "overwrite", "vocabulary")
    not_of_the_run = (*places, "shard", "distributed")
    return any(
        value not in (None, [])
        for name, value in vars(options).items()
        if name not in not_of_the_run
    )


def _check_names(
    command: str,
    values: Iterable[str],
    vocabulary: Vocabulary,
    names: Iterable[str] | None,
) -> None:
    """Refuses names that the command's file may not have."""
    allowed = (*(vocabulary.names if names is None else names), *COMMANDS[command].names)
    for name in values:
        takers = [other_name for other_name, other in COMMANDS.items() if name in other.names]
        other_takers = [taker for taker in takers if taker != command]
        if name not in allowed and other_takers:
            raise ValueError(f"{name} belongs to fedjax-sim {' and '.join(other_takers)}")
        vocabulary.check(name, "name", allowed)


def setting_options(options: argparse.Namespace) -> dict[str, Any]:
    """Values of a setting that the user gave as options."""
    settings = options.vocabulary.options
    return {name: value for name, value in vars(options).items() if name in settings}
