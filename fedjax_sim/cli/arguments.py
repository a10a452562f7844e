"""Arguments that commands share and that are no setting."""

import argparse
from pathlib import Path


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
        "--out",
        type=folder,
        metavar="DIR",
        **said,
        help=f"{what} folder" + (f" (default: {default})" if default else ""),
    )
    either = parser.add_mutually_exclusive_group()
    either.add_argument("--resume", action="store_true", help=resume)
    either.add_argument("--overwrite", action="store_true", help="replace the results in --out")


def add_config(parser: argparse.ArgumentParser) -> None:
    """CONFIG."""
    parser.add_argument(
        "config",
        nargs="?",
        type=Path,
        metavar="CONFIG",
        help="a TOML file of the options below, which override it (client_lr = 0.1); with "
        "--resume by default the one in --out",
    )


def folder(text: str) -> Path:
    """A folder's name."""
    if not text:
        raise argparse.ArgumentTypeError("must name a folder; got an empty string")
    return Path(text)
