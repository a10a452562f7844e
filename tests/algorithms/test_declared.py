"""What every declared algorithm does with its own numbers, as the registry has them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from fedjax_sim import algorithms
from fedjax_sim.core.registry import declared

DECLARED = declared(algorithms)
# Labels of two classes, which losses of classes need.
MODEL = fs.models.logistic_regression((3,), 2)
LOSS = fs.models.cross_entropy(MODEL.apply)
LOSS_OF_HALVES = fs.models.cross_entropy(
    lambda params, x: jnp.dot(
        x.astype(params["layers_1"]["kernel"].dtype), params["layers_1"]["kernel"]
    )
)
PARAMS = {"layers_1": {"kernel": np.zeros((3, 2), np.float32), "bias": np.zeros(2, np.float32)}}
LOCAL = fs.LocalTraining(2, 2)
REFUSED = (-1.0, 0.0, 1.0, 2.0, 0.5, float("nan"))
NUMBERS = [
    pytest.param(declaration, option, id=f"{name}-{option.name}")
    for name, declaration in DECLARED.items()
    for option in declaration.options
    if option.range is not None
]


def first_params(declaration, dtype):
    """Zeros; of an algorithm of several models as many that differ."""
    params = jax.tree.map(lambda x: jnp.asarray(x, dtype), PARAMS)
    several = declaration.facts.several_models
    if several is None:
        return params
    (number,) = (o.default for o in declaration.options if o.name == several)
    return jax.tree.map(lambda x: jnp.stack([x + i for i in range(number)]), params)


def call(declaration, values, client_lr=0.1, server_lr=0.5, loss_fn=LOSS):
    defaults = {option.name: option.default for option in declaration.options}
    if "personal" in defaults:  # the parameters that stay with a client, by their paths
        defaults["personal"] = "layers_1/bias"
    return declaration.call(
        defaults | values,
        loss_fn=loss_fn,
        local=LOCAL,
        unlabelled={"x": np.ones((4, 3), np.float32)},
        client_lr=client_lr,
        client_optimizer=optax.sgd(client_lr),
        server_lr=server_lr,
        server_optimizer=optax.sgd(server_lr),
    )


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    return fs.FederatedData.from_clients(
        [
            {"x": rng.normal(size=(n, 3)).astype(np.float32), "y": np.arange(n) % 2}
            for n in (3, 1, 5)
        ]
    )


@pytest.mark.parametrize("name", DECLARED)
def test_a_model_of_16_bits_keeps_its_type(name, data):
    """Server, clients and a client's carry hold the dtypes that they begin with."""
    halves = first_params(DECLARED[name], jnp.bfloat16)

    def a_round():
        algorithm = call(DECLARED[name], {}, loss_fn=LOSS_OF_HALVES)
        round_fn = fs.make_round(algorithm, fs.aggregation.uniform, fs.execution.packed(2))
        state = fs.init(algorithm, halves, data)
        return state, round_fn(jax.random.key(0), state, data, fs.Cohort(np.arange(3)))[0]

    before, after = jax.eval_shape(a_round)
    assert jax.tree.leaves(before) == jax.tree.leaves(after)
    assert {x.dtype for x in jax.tree.leaves(after.params)} == {jnp.dtype("bfloat16")}


@pytest.mark.parametrize("name", DECLARED)
def test_a_sweep_of_its_numbers_is_one_trace(name, data):
    """All that are declared as traced, and the rates, have no values where the round is traced."""
    declaration = DECLARED[name]
    traced = {o.name: o.default for o in declaration.options if o.traced}
    params = first_params(declaration, jnp.float32)

    def a_round(values, client_lr, server_lr):
        algorithm = call(declaration, values, client_lr, server_lr)
        round_fn = fs.make_round(algorithm, fs.aggregation.uniform, fs.execution.vmapped())
        state = fs.init(algorithm, params, data)
        return round_fn(jax.random.key(0), state, data, fs.Cohort(np.arange(3)))[0]

    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct((), np.float32), (traced, 0.1, 0.5))
    after = jax.eval_shape(a_round, *shapes)
    assert jax.tree.leaves(after.params)


@pytest.mark.parametrize(("declaration", "option"), NUMBERS)
def test_a_number_out_of_range_is_refused_by_name(declaration, option):
    """By the factory itself, in the option's name; the whole numbers by what they are not."""
    refused = [x for x in REFUSED if not option.range.allows(x)]
    if option.kind is int:
        refused = [int(x) for x in refused if np.isfinite(x)]
    assert refused
    for value in refused:
        with pytest.raises(ValueError, match=rf"^{option.name} must be .*; got {value}"):
            call(declaration, {option.name: value})
