"""Options that commands share."""

import argparse
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from fedjax_sim.cli import files
from fedjax_sim.cli.values import check_known, kinds, parsed
from fedjax_sim.results.folder import CONFIGURATION
from fedjax_sim.settings.setting import NAMES, Setting

# Names of a command's file beside those of a setting.
OWN = {
    "run": ("baselines", "patience", "keep_model"),
    "sweep": ("seeds", "metric", "keep_models", "grid", "zip", "random"),
    "compare": ("fractions", "modes", "seeds"),
}


def add_setting(
    parser: argparse.ArgumentParser,
    names: Iterable[str] = NAMES,
    helps: Mapping[str, str] | None = None,
) -> None:
    """An option for each of these fields, in their order; what is not given is not there.

    Args:
      helps: name -> the help of a command to which the field's own does not apply.
    """
    for f in fields(Setting):
        if f.name not in names:
            continue
        flags = [f"--{f.name.replace('_', '-')}"]
        flags += [f.metadata["short"]] if f.metadata["short"] else []
        how: dict[str, Any] = {"type": reader(f.name), "metavar": f.metadata["metavar"]}
        if kinds(f.name) == (bool,):
            how = {"action": argparse.BooleanOptionalAction}
        parser.add_argument(
            *flags, dest=f.name, default=argparse.SUPPRESS,
            help=(helps or {}).get(f.name, f.metadata["help"]), **how,
        )  # fmt: skip


def reader(name: str) -> Callable[[str], Any]:
    """What argparse reads the field with."""

    def read(text: str) -> Any:
        try:
            return parsed(name, text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error).removeprefix(f"{name} ")) from None

    return read


def whole(text: str) -> int:
    """What argparse reads a whole number with."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number; got {text!r}") from None


def add_out(
    parser: argparse.ArgumentParser, default: str | None, resume: str, what: str = "results"
) -> None:
    """--out, --resume and --overwrite."""
    said = {"default": Path(default)} if default else {"required": True}
    parser.add_argument(
        "--out", type=folder, metavar="DIR", **said,
        help=f"{what} folder" + (f" (default: {default})" if default else ""),
    )  # fmt: skip
    either = parser.add_mutually_exclusive_group()
    either.add_argument("--resume", action="store_true", help=resume)
    either.add_argument("--overwrite", action="store_true", help="replace the results in --out")


def add_config(parser: argparse.ArgumentParser) -> None:
    """CONFIG."""
    parser.add_argument(
        "config", nargs="?", type=Path, metavar="CONFIG",
        help="a TOML file of the options below, which override it (client_lr = 0.1); with "
        "--resume by default the one in --out",
    )  # fmt: skip


def read(
    command: str,
    options: argparse.Namespace,
    fields: Iterable[str] = NAMES,
    more: Iterable[str] = (),
) -> dict[str, Any]:
    """What a command runs, by name: of CONFIG, or of what is to be resumed, and options over it.

    Says so if there is nothing to be resumed.

    Args:
      fields: those of a setting that the command takes.
      more: names of its own whose options replace what the file says.

    Raises:
      ValueError: if the file cannot be read, or has a name that the command does not take (whose
        it is, or the nearest); if nothing says what to start.
    """
    found = _config(options)
    options.elsewhere = {*found}  # what an error calls by the name that the file has
    _check_names(command, found, fields)
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


def how_to_assign(text: str, flags: Iterable[str]) -> str:
    """How to write what was written as NAME=VALUE behind no option; "" of anything else.

    Args:
      flags: of the command.

    >>> how_to_assign("epochs=1,5", ["--epochs", "--grid"])
    '; write each axis behind an option of its own, as --grid epochs=1,5'
    >>> how_to_assign("epochs=5", ["--epochs"])
    '; an option is written --epochs 5'
    """
    name, equals, value = text.partition("=")
    if not equals or not name.replace("-", "_").isidentifier():
        return ""
    if "--grid" in flags:
        return f"; write each axis behind an option of its own, as --grid {text}"
    return f"; an option is written --{name.replace('_', '-')} {value}"


def _say_what_runs(options: argparse.Namespace) -> bool:
    others = ("command", "out", "resume", "overwrite")
    return any(value not in (None, []) for name, value in vars(options).items()
               if name not in others)  # fmt: skip


def _check_names(command: str, values: Iterable[str], fields: Iterable[str]) -> None:
    """Refuses what is no name of a command's file."""
    known = (*fields, *OWN[command])
    for name in values:
        others = [other for other, own in OWN.items() if name in own and other != command]
        if name not in known and others:
            raise ValueError(f"{name} belongs to fedjax-sim {' and '.join(others)}")
        check_known(name, known, "name")


def given(options: argparse.Namespace) -> dict[str, Any]:
    """The fields of a setting that were given as options."""
    return {name: value for name, value in vars(options).items() if name in NAMES}


def folder(text: str) -> Path:
    """A folder's name."""
    if not text:
        raise argparse.ArgumentTypeError("must name a folder; got an empty string")
    return Path(text)
