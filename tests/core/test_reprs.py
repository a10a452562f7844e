"""What objects say of themselves: one line, of shapes and names."""

import inspect
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from hypothesis import given
from hypothesis import strategies as st

import fedjax_sim as fs
from fedjax_sim.core import reprs
from fedjax_sim.core.types import FederatedState
from fedjax_sim.results.runs import Run
from tests.conftest import linear_loss, zeros


def things():
    rows = {"x": np.ones((3, 2), np.float32), "y": np.ones(3, np.float32)}
    data = fs.FederatedData.from_clients([rows] * 40)
    local = fs.LocalTraining()
    algorithms = (
        fs.fedavg(linear_loss, optax.adam(0.1), local),
        fs.fedprox(linear_loss, optax.sgd(0.1), local, mu=0.1),
        fs.scaffold(linear_loss, 0.1, local),
        fs.fedsgd(linear_loss, fs.server_optimizers.yogi(0.1)),
    )
    params = {f"layer{i}": np.full((50, 50), 0.5, np.float32) for i in range(9)}
    model = fs.models.from_flax(nn.Sequential([nn.Dense(7), nn.relu, nn.Dense(2)]), (3,))
    for algorithm in algorithms:
        yield algorithm
        yield algorithm.client
        yield FederatedState(
            algorithm.init(params), algorithm.init_client(params), jnp.int32(0), algorithm.params
        )
        yield fs.Experiment(algorithm, params, data, fs.sampling.uniform(5), num_rounds=3)
    sampler = fs.sampling.weighted(20)
    yield sampler
    yield sampler.sample(jax.random.key(0), 0, data)
    yield from (model, fs.models.cross_entropy(model.apply), fs.models.character_lstm())
    yield fs.datasets.digits()
    yield from (fs.reaches("test_accuracy", 0.5), fs.patience("test_loss", 3))
    yield fs.any_of(lambda history: jnp.array(False), fs.reaches("test_loss", 0.5))
    many = np.linspace(0.0, 1.0, 500)
    yield fs.Evaluation({"loss": many[3]}, {"loss": many})
    yield fs.RoundMetrics({"loss": many}, *10 * [many])
    yield Run({"lr": 0.1}, 0, {"test_accuracy": many}, {}, 500)
    yield fs.Coefficients(many, None)
    yield fs.ClientOutput({"w": many})


def test_each_is_a_line_without_arrays_or_addresses():
    for thing in things():
        line = repr(thing)
        name = type(thing).__name__
        assert line.startswith(
            f"{name}(" if name != "_Reaches" else "reaches('test_accuracy', 0.5)"
        )
        for word in ("\n", " at 0x", "array(", "Array(", "Tracer"):
            assert word not in line, line
        assert len(line) < 600, line


def test_no_public_type_writes_its_arrays():
    """A NamedTuple of arrays, whoever adds one, has a line of its own."""
    public = [getattr(fs, name) for name in fs.__all__]  # each is imported once it is asked for
    types = [x for x in public if inspect.isclass(x) and x.__module__[:6] == "fedjax"]
    tuples = [x for x in types if hasattr(x, "_fields")]
    assert len(tuples) > 10
    for kind in tuples:
        of_arrays = {"Array", "PyTree", "Params", "Callable", "FederatedData"}
        fields = str(inspect.get_annotations(kind))
        if any(word in fields for word in of_arrays):
            assert kind.__repr__.__module__ != "collections", kind


def test_a_pytree_stays_one_and_what_is_traced_has_a_shape():
    algorithm = fs.fedavg(linear_loss, optax.sgd(0.1), fs.LocalTraining())
    state = FederatedState(algorithm.init(zeros()), (), jnp.int32(4), algorithm.params)
    again = jax.tree.map(lambda x: x, state)
    assert jax.tree.structure(again) == jax.tree.structure(state)
    said = []
    jax.eval_shape(lambda state: said.append(repr(state)), state)
    said.append(repr(jax.tree.map(lambda x: object(), state)))
    said.append(repr(jax.eval_shape(lambda state: state, state)))
    assert repr(state).endswith("round=4)")
    assert said[0] == said[2]
    assert said[0].endswith("round=int32[])")
    assert said[1].endswith("round=object)")
    cohort = fs.Cohort(jnp.arange(2))
    assert cohort == fs.Cohort(*cohort)
    assert tuple(cohort._replace(mask=None)) == tuple(cohort)


def test_samplers_and_models_that_differ_read_differently():
    model = fs.models.mlp
    for kinds in (
        [fs.sampling.uniform(3), fs.sampling.uniform(4), fs.sampling.with_replacement(3)],
        [fs.sampling.bernoulli(0.1), fs.sampling.bernoulli(0.2)],
        [model((3,), (8,), 2), model((3,), (9,), 2), fs.models.logistic_regression((3,), 2)],
    ):
        assert len({*map(repr, kinds)}) == len(kinds)


class Own(NamedTuple):
    a: object
    b: object = ()


_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.floats()
    | st.text(max_size=200)
    | st.sampled_from([np.zeros((3, 4)), np.float32(2), jax.ShapeDtypeStruct((2,), int), object()])
    | st.sampled_from([optax.sgd(0.1), optax.EmptyState(), len, np.ones, str, lambda x: x]),
    lambda inner: (
        st.lists(inner, max_size=4).map(tuple)
        | st.lists(inner, max_size=9)
        | st.dictionaries(st.text(max_size=3), inner, max_size=4)
        | st.builds(Own, inner, inner)
    ),
    max_leaves=12,
)


@given(_VALUES)
def test_any_value_has_a_line_without_an_address(value):
    line = reprs.short(value)
    assert "\n" not in line
    assert " at 0x" not in line
    assert "array(" not in line


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (jax.random.key(0), "key<fry>[]"),
        (np.float32(0.123456), "0.1235"),
        (jnp.bfloat16(2), "2"),
        ([np.ones(3)] * 9, "9 arrays of 27 numbers"),
        (optax.EmptyState(), "EmptyState()"),
    ],
)
def test_a_value(value, says):
    assert reprs.short(value) == says
