"""Finds the command, calls it, and says in one line what went wrong."""

import argparse
import importlib
import io
import os
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, NamedTuple, NoReturn

from fedjax_sim import __version__
from fedjax_sim.cli.signals import INTERRUPTED, second_ends_at_once
from fedjax_sim.cli.wording import how_to_assign, in_options
from fedjax_sim.core.interrupted import LostProcessError


class Command(NamedTuple):
    """A command, whose module is imported once it is called, and what `--help` says of it.

    A module has DESCRIPTION, HAS_SETTING (whether its options are those of a setting),
    `add_options` and `call`.
    """

    module: str
    help: str
    needs: tuple[str, ...] = ()  # what of the cli extra it imports
    names: tuple[str, ...] = ()  # of its file, beside those of a setting

    def load(self) -> Any:
        """The module."""
        return importlib.import_module(f"fedjax_sim.cli.commands.{self.module}")


COMMANDS = {
    "run": Command(
        "run",
        "train one model",
        ("rich",),
        ("baselines", "patience", "keep_model", "fine_tune", "client_states"),
    ),
    "sweep": Command(
        "sweep",
        "train many configurations with several seeds",
        ("rich",),
        ("seeds", "metric", "keep_models", "grid", "zip", "random"),
    ),
    "compare": Command(
        "compare",
        "compare the aggregation modes",
        ("matplotlib", "rich"),
        ("fractions", "modes", "compress", "seeds"),
    ),
    "report": Command("report", "make a page of results"),
    "data": Command("data", "fetch, list and describe data sets"),
    "reproduce": Command("reproduce", "run the papers' tables again", ("matplotlib", "rich")),
}


class _Parser(argparse.ArgumentParser):
    """One line for a mistake, and exit code 2."""

    def error(self, message: str) -> NoReturn:
        self.fail(2, message)

    @property
    def flags(self) -> list[str]:
        """All options."""
        return [flag for action in self._actions for flag in action.option_strings]

    def in_own_words(self, message: str, options: argparse.Namespace) -> str:
        """An error of the package with this command's options in place of Python's arguments."""
        flags = {
            action.dest: next(flag for flag in action.option_strings if flag.startswith("--"))
            for action in self._actions
            if action.option_strings
        }
        given_options = {name: x for name, x in vars(options).items() if x not in (None, [], False)}
        elsewhere = {*getattr(options, "elsewhere", ())} - {*given_options}
        texts = [str(x) for x in given_options.values() if isinstance(x, os.PathLike)]
        return in_options(message, flags, texts, elsewhere)

    def unknown(self, arguments: list[str]) -> NoReturn:
        """Refuses unknown arguments, naming the nearest option or the command that has it."""
        refusal = f"unrecognized arguments: {' '.join(arguments)}"
        flags = [argument.split("=")[0] for argument in arguments if argument.startswith("--")]
        if not flags:
            self.error(refusal + how_to_assign(arguments[0], self.flags))
        flag = flags[0]
        takers = [name for name in COMMANDS if flag in _of_command(name).flags]
        if takers:
            self.error(f"{refusal}; {flag} is an option of fedjax-sim {' and '.join(takers)}")
        near = get_close_matches(flag, self.flags, 1, 0.8)
        near = near or [known_flag for known_flag in self.flags if known_flag.endswith(flag[1:])]
        self.error(refusal + (f"; did you mean {' or '.join(near)}?" if near else ""))

    def fail(self, code: int, message: str) -> NoReturn:
        self.exit(code, self._line(message))

    def fail_at_once(self, code: int, message: str) -> NoReturn:
        """As `fail`, without what Python does when it ends: JAX meets all processes of a run there,
        and waits for one that is gone."""
        sys.stdout.flush()
        sys.stderr.write(self._line(message))
        sys.stderr.flush()
        os._exit(code)

    def _line(self, message: str) -> str:
        return f"{self.prog}: error: {' '.join(message.split())}\n"


def _of_command(name: str) -> _Parser:
    """A command's options, of the package alone."""
    parser = _Parser(add_help=False)
    COMMANDS[name].load().add_options(parser)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Runs `fedjax-sim`; returns its exit code: 0, 1 (not saved), 2 (a mistake) or 130."""
    words = sys.argv[1:] if arguments is None else arguments
    parser = _Parser(prog="fedjax-sim", description="Federated learning in JAX.")
    parser.add_argument("--version", action="version", version=f"fedjax-sim {__version__}")
    parsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    parsers_by_name = {
        name: parsers.add_parser(name, help=command.help, allow_abbrev=False)
        for name, command in COMMANDS.items()
    }
    name = next((word for word in words if not word.startswith("-")), "")
    if name not in COMMANDS:
        parser.parse_args(words)  # --help, --version, or what is no command
    is_help = bool({"-h", "--help"} & {*words})
    try:
        for needed in () if is_help else COMMANDS[name].needs:
            importlib.import_module(needed)
    except ImportError as error:
        parsers_by_name[name].error(
            f"{error.name} is missing; install the cli extra: fedjax-sim[cli]"
        )
    module = COMMANDS[name].load()
    parsers_by_name[name].description = module.DESCRIPTION
    if module.HAS_SETTING:
        vocabulary = _vocabulary(parsers_by_name[name], words[words.index(name) + 1 :])
        module.add_options(parsers_by_name[name], vocabulary)
        parsers_by_name[name].set_defaults(vocabulary=vocabulary)
    else:
        module.add_options(parsers_by_name[name])
    options, unknown = parser.parse_known_args(words)
    # A subcommand has a parser of its own, which then reports the errors.
    command: _Parser = getattr(options, "parser", parsers_by_name[name])
    if unknown:
        command.unknown(unknown)
    # A character that stdout cannot encode (a plus-minus sign in an ASCII locale) is replaced.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    return _called(module, command, options)


def _called(module: Any, command: _Parser, options: argparse.Namespace) -> int:
    """Calls the command, and turns its errors into one line and an exit code."""
    try:
        with second_ends_at_once():
            return _without_wrapping(module, options)
    except (ValueError, ImportError) as error:
        command.error(command.in_own_words(str(error), options))
    except BrokenPipeError:  # whoever read the output has gone; the files are written
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # a file that could not be written
        command.fail(1, str(error))
    except LostProcessError as error:
        command.fail_at_once(1, str(error))
    except KeyboardInterrupt:
        print("Interrupted before the first rounds were computed.")
        return INTERRUPTED


def _without_wrapping(module: Any, options: argparse.Namespace) -> int:
    """Calls the command, and raises the cause of an InterruptedRun in its place."""
    from fedjax_sim.core.files import SaveError
    from fedjax_sim.core.interrupted import InterruptedRun

    code: int
    try:
        code = module.call(options)
    except SaveError:
        raise
    except InterruptedRun as error:
        raise error.__cause__ or error from None
    return code


def _vocabulary(command: _Parser, words: Sequence[str]) -> Any:
    """The options of the package and of the user's files that the words name."""
    from fedjax_sim.cli.own_files import vocabulary_in

    try:
        return vocabulary_in(words)
    except ValueError as error:
        command.error(f"--{error}")
    except KeyboardInterrupt:
        command.exit(INTERRUPTED)
