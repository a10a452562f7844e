"""What files declare of themselves, and that nothing is declared without its range and help."""

import ast
import inspect
from pathlib import Path

import pytest

from fedjax_sim import algorithms
from fedjax_sim.core import registry
from fedjax_sim.core.registry import AT_LEAST_0, Option, declare
from fedjax_sim.sampling import traces
from fedjax_sim.settings.rooms import ROOMS

# Rooms that build what is named, and must know it by its declaration alone.
BUILDERS = ("settings", "cli", "host", "training", "execution", "sweeps", "report", "compare")
DECLARED = [
    pytest.param(declaration, id=f"{room}-{name}")
    for room in ROOMS
    for name, declaration in registry.declared(ROOMS[room].face).items()
]


@pytest.mark.parametrize("declaration", DECLARED)
def test_what_is_declared_is_complete(declaration):
    assert declaration.help
    for option in declaration.options:
        assert option.help, f"{option.name} has no help"
        is_number = option.kind in (int, float)
        assert not is_number or option.range, f"{option.name} has no range"
        # A text of any words says of what in the help.
        is_closed = is_number or option.kind is bool or option.choices
        assert is_closed or option.metavar, f"{option.name} has no choices"
        assert option.argument in declaration.parameters, f"{option.name} is no parameter"
        if option.default is not None:
            option.check(option.default)


def test_every_algorithm_is_declared():
    factories = {name for name, value in vars(algorithms).items() if inspect.isfunction(value)}
    assert factories == set(registry.declared(algorithms))


@pytest.mark.parametrize("room", ["algorithm", "dataset", "partition", "model", "privacy"])
def test_what_builds_names_nothing_that_declares_itself(room):
    """To add another is to write its file and a line of its room's face."""
    # These words are names of fields, too.
    names = {*registry.declared(ROOMS[room].face)} - {"digits", "labels", "local"}
    package = Path(registry.__file__).parent.parent
    several = [path for builder in BUILDERS for path in (package / builder).rglob("*.py")]
    assert len(several) > 50
    for path in several:
        texts = {
            x.value for x in ast.walk(ast.parse(path.read_text())) if isinstance(x, ast.Constant)
        }
        assert not names & texts, path


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        (Option("mu", "", range=AT_LEAST_0), -1.0, "mu must be finite and at least 0; got -1.0"),
        (Option("mu", "", range=AT_LEAST_0), float("nan"), "mu must be finite and at least 0"),
        (Option("n", "", kind=int, range=AT_LEAST_0), 1.5, "n must be a whole number, at least 0"),
        (Option("n", "", kind=int, range=AT_LEAST_0), True, "n must be a whole number, at least 0"),
        (Option("law", "", kind=str, choices=("a", "b")), "c", "law must be one of a, b; got 'c'"),
    ],
)
def test_a_value_out_of_range_is_refused(option, value, message):
    with pytest.raises(ValueError, match=message):
        option.check(value)


def test_a_factory_is_called_with_what_it_takes():
    @declare("a rule", Option("wave_alpha", "height", range=AT_LEAST_0, parameter="alpha"))
    def rule(loss_fn, alpha=2.0, other=3):
        return loss_fn, alpha, other

    declaration = registry.declaration_of(rule)
    assert declaration.call({}, loss_fn="loss", local="unused") == ("loss", 2.0, 3)
    assert declaration.call({"wave_alpha": 5.0}, loss_fn="loss") == ("loss", 5.0, 3)


def test_a_refusal_names_the_option_and_not_the_factorys_parameter():
    """`--share` is top-k's, and the share of a period is `--availability-share`."""
    periodic = registry.declared(traces)["periodic"]
    for call, name in (
        (lambda: periodic.call({"availability_share": 0.01}), "availability_share"),
        (lambda: traces.periodic(24, 0.01), "share"),
    ):
        with pytest.raises(ValueError, match="half a round of the period") as refusal:
            call()
        assert str(refusal.value).split()[0] == name


def test_an_undeclared_factory_has_the_options_of_its_signature():
    def mine(loss_fn, local, alpha=0.5, steps=3, fast=True, name="x", server_lr=1.0):
        pass

    made = registry.undeclared("mine.py:mine", mine, ("loss_fn", "local", "server_lr"))
    assert [(o.name, o.kind, o.default) for o in made.options] == [
        ("alpha", float, 0.5),
        ("steps", int, 3),
    ]
    other = registry.renamed(made, "mine", frozenset({"alpha"}))
    assert [(o.name, o.argument) for o in other.options] == [
        ("mine_alpha", "alpha"),
        ("steps", "steps"),
    ]
