"""What the command line says of itself: its own options, and no others."""

import argparse
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_sim.cli import main
from fedjax_sim.cli.commands import data_describe
from fedjax_sim.cli.parser import COMMANDS
from fedjax_sim.cli.wording import in_options
from fedjax_sim.settings.options import NAMES
from fedjax_sim.settings.rooms import ROOMS, declarations

MODULES = {**{name: one.load() for name, one in COMMANDS.items()}, "data describe": data_describe}
FLAGS = {name: f"--{name.replace('_', '-')}" for name in NAMES}


def refused(capsys, *options):
    with pytest.raises(SystemExit) as exit:
        main([*options])
    assert exit.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("command", MODULES)
def test_a_help_names_no_option_that_the_command_has_not(command):
    parser = argparse.ArgumentParser()
    MODULES[command].add_options(parser)
    own = {flag for action in parser._actions for flag in action.option_strings}
    for action in parser._actions:
        assert {*re.findall(r"(?<![\w-])--[a-z][a-z-]*", action.help or "")} <= own, action.dest


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--rounds", "0"),
        ("--clients", "0"),
        ("--client-lr", "-1"),
        ("--server-lr", "0"),
        ("--client-momentum", "1"),
        ("--evaluate-every", "0"),
        ("--epochs", "0"),
        ("--batch-size", "0"),
        ("--fraction", "2"),
        ("--alpha", "0"),
        ("--seed", "-1"),
        ("--partition-seed", "-1"),
        ("--min-examples", "-1"),
        ("--target", "2"),
        ("--validation", "1"),
        ("--mode", "x"),
        ("--model", "x"),
        ("--algorithm", "x"),
        ("--partition", "x"),
        ("--sampler", "x"),
        ("--schedule", "x"),
        ("--execution", "x"),
        ("--server-optimizer", "x"),
        ("--mu", "1"),
        ("--decay-rate", "1"),
        ("--decay-end", "0.5"),
        ("--decay-rounds", "3"),
        ("--skew", "power_law"),
        ("--synthetic-beta", "1"),
        ("--classes-per-client", "2"),
        ("--execution", "packed:0"),
        ("--cores", "100000"),
        ("--patience", "0"),
        ("--baselines", "x"),
        ("--clients", "1438"),
    ],
)
def test_what_is_wrong_with_an_option_is_said_of_the_option(capsys, tmp_path, option, value):
    said = refused(capsys, "run", option, value, "--out", str(tmp_path / "out"))
    if option != "--baselines":
        assert said.startswith(f"fedjax-sim run: error: {option} ")
    named = "|".join(name for name in NAMES if "_" in name)
    assert not re.search(rf"(?<!')\b({named})\b", said)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("num_rounds must be more; got 3", "--rounds must be more; got 3"),
        ("out a/client_lr holds what client_lr is", "--out a/client_lr holds what --client-lr is"),
        ("out a/rounds cannot: rounds is 1 there and 2 here", None),
        ("mu belongs to algorithm fedprox", "--mu belongs to --algorithm fedprox"),
        ("grid.client_lr must be a list", "grid.client_lr must be a list"),
        ("an axis, as client_lr=0.1", "an axis, as client_lr=0.1"),
        ("unknown name 'x'; known are client_lr, mu", "unknown name 'x'; known are client_lr, mu"),
        ("the 7 rounds that are done; the target", "the 7 rounds that are done; the target"),
        ("give overwrite (--overwrite)", "give --overwrite"),
        ("epochs must be; got 'client_lr'", "--epochs must be; got 'client_lr'"),
    ],
)
def test_names_become_options_where_they_are_arguments(message, said):
    flags = FLAGS | {"out": "--out"}
    if said is None:
        said = message.replace("out ", "--out ", 1).replace(": rounds", ": --rounds")
    assert in_options(message, flags, ["a/client_lr", "a/rounds"]) == said


# Errors name functions of these rooms that no setting chooses, as fs.models.cross_entropy; and an
# algorithm's public name has no room in it, as fs.fedavg.
STAY = {"algorithms", "datasets", "models", "partition"}


@pytest.mark.parametrize("room", ROOMS)
def test_a_choice_of_any_room_is_its_name_alone(room):
    path = ROOMS[room].face.__name__.removeprefix("fedjax_sim.").removeprefix("transforms.")
    for name in declarations(room):
        message = f"it must be fs.{path}.{name}(1), or none"
        expected = message if path in STAY else f"it must be {name}, or none"
        assert in_options(message, {}) == expected


@settings(max_examples=25)
@given(st.text(max_size=60), st.sampled_from(NAMES))
def test_what_the_user_wrote_stays_as_it_is(text, name):
    """A folder called as an option is; and no message grows a second pair of dashes."""
    path = f"{text}/{name}".strip()
    said = in_options(f"out {path} holds results", FLAGS | {"out": "--out"}, [path])
    assert said == f"--out {path} holds results"
    flag = FLAGS[name]
    assert in_options(f"{flag} must be positive", FLAGS) == f"{flag} must be positive"
    elsewhere = f"{name} must be positive"
    assert in_options(elsewhere, FLAGS, elsewhere=[name]) == elsewhere
