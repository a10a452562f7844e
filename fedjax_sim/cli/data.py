"""`fedjax-sim data`: data sets, and how they are split."""

import argparse

from fedjax_sim.cli import data_describe

HELP = "show data sets and their splits"
DESCRIPTION = "Data sets, and how they are split over clients."
NEEDS = ()
_ACTIONS = {"describe": data_describe}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Those of each action."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, module in _ACTIONS.items():
        module.add_options(
            actions.add_parser(
                name, help=module.HELP, description=module.DESCRIPTION, allow_abbrev=False
            )
        )


def call(options: argparse.Namespace) -> int:
    """Calls the action."""
    return _ACTIONS[options.action].call(options)
