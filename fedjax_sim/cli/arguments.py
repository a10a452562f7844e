"""Arguments that several commands have and that are no setting of a run."""

import argparse
from pathlib import Path


def whole(text: str) -> int:
    """Reads a whole number for argparse."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number; got {text!r}") from None


def add_out(
    parser: argparse.ArgumentParser, default: str | None, resume: str, contents: str = "results"
) -> None:
    """--out, --resume and --overwrite."""
    required = {"default": Path(default)} if default else {"required": True}
    parser.add_argument(
        "--out",
        type=folder,
        metavar="DIR",
        **required,
        help=f"{contents} folder" + (f" (default: {default})" if default else ""),
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
