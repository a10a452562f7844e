"""Finds the command, calls it, and says in one line what went wrong."""

import argparse
import importlib
import io
import os
import sys
from collections.abc import Mapping
from difflib import get_close_matches
from typing import NoReturn

from fedjax_sim import __version__
from fedjax_sim.cli.commands import compare, data, report, reproduce, run, sweep
from fedjax_sim.cli.options import how_to_assign
from fedjax_sim.cli.signals import INTERRUPTED, second_ends_at_once
from fedjax_sim.cli.wording import in_options
from fedjax_sim.core.files import SaveError
from fedjax_sim.core.interrupted import InterruptedRun

_COMMANDS = {
    "run": run,
    "sweep": sweep,
    "compare": compare,
    "report": report,
    "data": data,
    "reproduce": reproduce,
}


class _Parser(argparse.ArgumentParser):
    """One line for a mistake, and exit code 2."""

    def error(self, message: str) -> NoReturn:
        self.fail(2, message)

    @property
    def flags(self) -> list[str]:
        """All options."""
        return [flag for action in self._actions for flag in action.option_strings]

    def told(self, message: str, options: argparse.Namespace) -> str:
        """What Python's functions say of their arguments, said of this command's options."""
        flags = {
            action.dest: next(flag for flag in action.option_strings if flag.startswith("--"))
            for action in self._actions
            if action.option_strings
        }
        given = {name: x for name, x in vars(options).items() if x not in (None, [], False)}
        elsewhere = {*getattr(options, "elsewhere", ())} - {*given}
        texts = [str(x) for x in given.values() if isinstance(x, os.PathLike)]
        return in_options(message, flags, texts, elsewhere)

    def unknown(self, arguments: list[str], others: Mapping[str, "_Parser"]) -> NoReturn:
        """Refuses arguments that no option is of, with the nearest one or whose it is."""
        said = f"unrecognized arguments: {' '.join(arguments)}"
        given = [one.split("=")[0] for one in arguments if one.startswith("--")]
        if not given:
            self.error(said + how_to_assign(arguments[0], self.flags))
        flag = given[0]
        whose = [name for name, other in others.items() if flag in other.flags]
        if whose:
            self.error(f"{said}; {flag} is an option of fedjax-sim {' and '.join(whose)}")
        near = get_close_matches(flag, self.flags, 1, 0.8)
        near = near or [one for one in self.flags if one.endswith(flag[1:])]
        self.error(said + (f"; did you mean {' or '.join(near)}?" if near else ""))

    def fail(self, code: int, message: str) -> NoReturn:
        self.exit(code, f"{self.prog}: error: {' '.join(message.split())}\n")


def _call(options: argparse.Namespace) -> int:
    """Calls the command; what ended a run that had begun is raised as what it is."""
    code: int
    try:
        code = _COMMANDS[options.command].call(options)
    except SaveError:
        raise
    except InterruptedRun as error:
        raise error.__cause__ or error from None
    return code


def main(arguments: list[str] | None = None) -> int:
    """Runs `fedjax-sim`; returns its exit code: 0, 1 (not saved), 2 (a mistake) or 130."""
    parser = _Parser(prog="fedjax-sim", description="Federated learning in JAX.")
    parser.add_argument("--version", action="version", version=f"fedjax-sim {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    of = {}
    for name, module in _COMMANDS.items():
        of[name] = commands.add_parser(
            name, help=module.HELP, description=module.DESCRIPTION, allow_abbrev=False
        )
        module.add_options(of[name])
    options, unknown = parser.parse_known_args(arguments)
    # A subcommand's own, if it has some.
    command: _Parser = getattr(options, "parser", of[options.command])
    if unknown:
        command.unknown(unknown, of)
    try:
        for name in _COMMANDS[options.command].NEEDS:
            importlib.import_module(name)
    except ImportError as error:
        command.error(f"{error.name} is missing; install the cli extra: fedjax-sim[cli]")
    # What stdout cannot encode (a plus-minus sign in an ASCII locale) is replaced.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    try:
        with second_ends_at_once():
            return _call(options)
    except (ValueError, ImportError) as error:
        command.error(command.told(str(error), options))
    except BrokenPipeError:  # whoever read the output has gone; the files are written
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # a file that could not be written, and what of it was
        command.fail(1, str(error))
    except KeyboardInterrupt:
        print("Interrupted before the first rounds were computed.")
        return INTERRUPTED
