"""What a user finds without the README: public names, help, and words in place of bare refusals."""

import ast
import inspect
import pydoc
import re
import tomllib
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from flax import nnx

import fedjax_sim as fs
from fedjax_sim import aggregation, sampling
from fedjax_sim.core import types as base

ROOT = Path(__file__).parent.parent
KEY = jax.random.key(0)


def loss_fn(params, batch, key):
    return (batch["x"][:, 0] * params - batch["y"]) ** 2


@pytest.fixture(scope="module")
def one():
    """(algorithm, state, data) that fit."""
    examples = {"x": np.ones((3, 4), np.float32), "y": np.ones(3, np.float32)}
    data = fs.FederatedData.from_clients([examples] * 4)
    algorithm = fs.fedavg(loss_fn, optax.sgd(0.1), fs.LocalTraining())
    return algorithm, fs.init(algorithm, 0.0, data), data


def imported_by(face):
    """name -> module, of what a face imports under its own name; and the modules it takes whole."""
    imports = [node for node in ast.walk(ast.parse(face.read_text())) if hasattr(node, "module")]
    names = {alias.asname: node.module for node in imports for alias in node.names if alias.asname}
    return names, [node.module for node in imports if node.names[0].name == "*"]


def test_every_name_that_the_package_offers_is_listed():
    names, taken_whole = imported_by(ROOT / "fedjax_sim" / "__init__.py")
    algorithms, _ = imported_by(ROOT / "fedjax_sim" / "algorithms" / "__init__.py")
    assert taken_whole == ["fedjax_sim.algorithms"]
    assert not names.keys() & algorithms.keys()
    offered = names.keys() | algorithms.keys()
    assert sorted(offered) == fs.__all__
    assert {name for name in dir(fs) if not name.startswith("__")} == offered
    for name in fs.__all__:
        assert getattr(fs, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'fedavgg'"):
        _ = fs.fedavgg


def test_help_lists_them():
    text = pydoc.plain(pydoc.render_doc(fs))
    for name in fs.__all__:
        assert re.search(rf"\b{name}\b", text), name
    assert "sum_k a_k update_k / denominator" in text  # of server_update
    # What is public comes first, before pydoc's list of all modules.
    first = text[: text.index("PACKAGE CONTENTS\n")]
    assert {*re.findall(r"fs\.([A-Za-z_]+)", first)} == set(fs.__all__)


def public_functions():
    several = [fs, *(x for x in (getattr(fs, name) for name in fs.__all__) if inspect.ismodule(x))]
    for place in several:
        names = fs.__all__ if place is fs else vars(place)
        yield from (
            vars(place).get(name) for name in names if inspect.isfunction(vars(place)[name])
        )


def test_signatures_can_be_read():
    """Types by their names, and no default that writes an object's insides.

    A file whose functions fail here begins with `from __future__ import annotations`.
    """
    functions = list(public_functions())
    assert len(functions) > 100
    for function in functions:
        signature = inspect.signature(function)
        line = f"{function.__name__}{signature}"
        assert len(line) <= 640, line
        assert " object at 0x" not in line, line
        for parameter in signature.parameters.values():
            assert len(str(parameter)) <= 170, line
    assert "server_optimizer: 'optax.GradientTransformation' = optax.sgd(1.0)" in str(
        inspect.signature(fs.ditto)
    )


@pytest.mark.parametrize("name", sorted(aggregation.RULES))
def test_a_rule_that_is_called_like_a_factory_says_that_it_is_none(name):
    rule = getattr(fs.aggregation, name)
    with pytest.raises(ValueError, match=f"{name} is a rule and not the factory of one: pass it"):
        rule()
    with pytest.raises(TypeError, match="missing 2 required positional"):
        rule(fs.Cohort([0]))


@pytest.mark.parametrize(
    "kind", [x for x in vars(base).values() if inspect.isclass(x) and hasattr(x, "_fields")]
)
def test_help_says_of_each_field_what_it_is(kind):
    said = re.findall(r"^  ([a-z_]+): ", inspect.getdoc(kind).split("Attributes:")[1], re.M)
    assert tuple(said) == kind._fields


def test_the_citation_is_of_this_version():
    text = (ROOT / "CITATION.cff").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert re.search(r"^version: (.*)$", text, re.M)[1] == fs.__version__
    assert re.search(r"^license: (.*)$", text, re.M)[1] == project["license"]
    assert re.search(r"^cff-version: 1\.2\.0$", text, re.M)


@pytest.mark.parametrize("name", sorted(aggregation.RULES))
def test_a_rules_name_is_told_what_to_write(one, name):
    expected = rf"aggregation must be the function fs\.aggregation\.{name}, not its name; got"
    for given in (name, name.replace("_", "-")):
        with pytest.raises(ValueError, match=expected):
            fs.make_round(one[0], given)
    experiment = fs.Experiment(one[0], 0.0, one[2], fs.sampling.uniform(2), 3, aggregation=name)
    with pytest.raises(ValueError, match=expected):
        fs.simulate(experiment, KEY)


@pytest.mark.parametrize("name", ["automatic", "packed", "sharded", "vmapped"])
def test_a_strategys_name_is_told_what_to_write(one, name):
    with pytest.raises(ValueError, match=rf"execution must be fs\.execution\.{name}\(...\), not"):
        fs.make_round(one[0], execution=name)


def test_a_name_of_nothing_is_told_what_there_is(one):
    with pytest.raises(ValueError, match=r"one of fs\.aggregation\.selected, .*got 'averaged'"):
        fs.make_round(one[0], "averaged")


def test_a_samplers_name_or_factory_is_told_what_to_write(one):
    algorithm, state, data = one
    factories = [
        name
        for name, x in vars(sampling).items()
        if inspect.isfunction(x) and inspect.signature(x).return_annotation is fs.sampling.Sampler
    ]
    assert "uniform" in factories
    for name in factories:
        for given, said in (
            (name, rf"sampler must be fs\.sampling\.{name}\(...\), not its name"),
            (getattr(fs.sampling, name), f"got the function {name} itself: call it"),
        ):
            with pytest.raises(ValueError, match=said):
                fs.run(fs.make_round(algorithm), KEY, state, data, given, 3)


@pytest.mark.parametrize(
    "made_by", [fs.fedavg, fs.fednova, fs.fedprox, fs.fedsgd, fs.ifca, fs.qfedavg, fs.scaffold]
)
def test_an_algorithm_that_was_not_called_is_told_so(made_by):
    with pytest.raises(ValueError, match=f"the function {made_by.__name__} itself: call it"):
        fs.make_round(made_by)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"stop": "test_accuracy"}, r"stop must be a function .*fs\.reaches.*got 'test_accuracy'"),
        ({"writers": "tensorboard"}, r"writers must be a list .*got 'tensorboard'"),
        ({"writers": ["wandb"]}, r"writers must be a list .*got \['wandb'\]"),
    ],
)
def test_names_of_what_simulate_takes_are_refused(one, given, said):
    experiment = fs.Experiment(one[0], 0.0, one[2], fs.sampling.uniform(2), 3)
    with pytest.raises(ValueError, match=said):
        fs.simulate(experiment, KEY, **given)


def test_a_name_for_evaluate_is_refused(one):
    algorithm, state, data = one
    experiment = fs.Experiment(algorithm, 0.0, data, fs.sampling.uniform(2), 3, evaluate="loss")
    with pytest.raises(ValueError, match="evaluate must be a function of params"):
        fs.simulate(experiment, KEY)
    with pytest.raises(ValueError, match="evaluate must be a function of params"):
        fs.run(fs.make_round(algorithm), KEY, state, data, fs.sampling.uniform(2), 3, "loss")


class Net(nnx.Module):
    def __init__(self, rngs):
        self.dense = nnx.Linear(4, 1, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)


@pytest.mark.parametrize("inside", [False, True])
def test_keys_and_counters_of_nnx_among_the_params_name_the_cure(one, inside):
    _, params = nnx.split(Net(nnx.Rngs(0)))
    with pytest.raises(ValueError, match=r"nnx\.split\(module, nnx\.Param, \.\.\.\)"):
        fs.init(one[0], {"net": params} if inside else params, one[2])
    with pytest.raises(ValueError, match=r"got int32 at params\['steps'\]$"):
        fs.init(one[0], {"w": np.zeros(3, np.float32), "steps": np.int32(0)}, one[2])
