"""What is measured over the devices of a mesh is what one device measures."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh

import fedjax_sim as fs
from fedjax_sim.execution.mapped import map_numbers
from fedjax_sim.host.fingerprint import traced

MESH = Mesh(np.array(jax.devices()[:2]), ("clients",))
WITH_A_MODEL_AXIS = Mesh(np.array(jax.devices()[:2]).reshape(2, 1), ("clients", "model"))
SIZES = [5, 0, 3, 9, 1]


def federation(sizes, seed):
    rng = np.random.default_rng(seed)
    return fs.FederatedData.from_clients(
        [
            {"x": rng.normal(size=(n, 4)).astype(np.float32), "y": rng.integers(0, 3, n)}
            for n in sizes
        ]
    )


DATA = federation(SIZES, 0)
TEST = federation(SIZES[::-1], 1)
MODEL = fs.models.logistic_regression((4,), 3)
LOSS = fs.models.cross_entropy(MODEL.apply)
PARAMS = MODEL.init(jax.random.key(0))


def same(these, those):
    jax.tree.map(np.testing.assert_array_equal, these, those)


@pytest.mark.parametrize("mesh", [MESH, WITH_A_MODEL_AXIS])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_numbers_are_mapped_once_each_and_in_their_order(count, mesh):
    squares = jax.jit(lambda n: map_numbers(lambda i: {"square": i * i}, n, mesh))
    found = squares(jnp.arange(3, 3 + count))["square"]
    np.testing.assert_array_equal(found, np.arange(3, 3 + count) ** 2)
    assert found.sharding.is_fully_replicated
    assert "shard_map" in str(jax.make_jaxpr(squares)(jnp.arange(count)))


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_evaluate_over_devices_is_that_of_one(batch_size):
    def noisy(params, batch, key):
        losses, metrics = LOSS(params, batch, key)
        return losses, {**metrics, "draw": jax.random.uniform(key, losses.shape)}

    def measure(mesh):
        key = jax.random.key(7)
        return jax.jit(
            lambda params: fs.evaluate(
                noisy, params, TEST, key=key, batch_size=batch_size, mesh=mesh
            )
        )(PARAMS)

    same(measure(MESH), measure(None))


def test_a_source_over_devices_is_that_in_memory():
    source = fs.data.Source.of(TEST)

    def measure(data, mesh):
        return jax.jit(lambda p: fs.evaluate(LOSS, p, data, batch_size=6, mesh=mesh))(PARAMS)

    same(measure(source, MESH), measure(TEST, None))


@pytest.mark.parametrize("personal", [False, True])
def test_a_run_measured_over_its_devices_is_that_of_one(personal):
    sgd = optax.sgd(0.1)
    local = fs.LocalTraining(1, 2)
    algorithm = fs.fedper(LOSS, sgd, local, personal="*bias") if personal else None
    algorithm = algorithm or fs.fedavg(LOSS, sgd, local)

    def run(mesh):
        evaluate = fs.evaluator(
            LOSS,
            TEST,
            DATA,
            **({"personal": algorithm, "train": DATA} if personal else {}),
            batch_size=4,
            mesh=mesh,
        )
        experiment = fs.Experiment(
            algorithm,
            PARAMS,
            DATA,
            fs.sampling.uniform(3),
            num_rounds=3,
            execution=fs.execution.sharded(MESH),
            evaluate=evaluate,
        )
        return fs.simulate(experiment, jax.random.key(3)).history

    # To rounding, because XLA compiles the statistics together with what is before them.
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), run(MESH), run(None))


def test_fine_tuning_over_devices_is_that_of_one():
    algorithm = fs.fedavg(LOSS, optax.sgd(0.1), fs.LocalTraining(1, 2))
    state = fs.init(algorithm, PARAMS, DATA)
    tuning = fs.FineTuning(optax.sgd(0.2), fs.LocalTraining(2, 2))

    def measure(mesh):
        return jax.jit(
            lambda state: fs.evaluate_clients(
                LOSS, algorithm, state, DATA, test=TEST, fine_tune=tuning, mesh=mesh
            )
        )(state)

    same(measure(MESH), measure(None))


def test_a_saved_run_goes_on_over_other_devices():
    """A run's checksum is of what is measured, and not of where."""

    def checksums(mesh):
        return traced(lambda p: {"mean": fs.evaluate(LOSS, p, TEST, mesh=mesh).mean}, PARAMS)

    assert checksums(MESH) == checksums(None)
    assert checksums(None) != traced(lambda p: {"mean": fs.evaluate(LOSS, p, DATA).mean}, PARAMS)


def test_a_mesh_that_is_none_is_refused():
    algorithm = fs.fedavg(LOSS, optax.sgd(0.1), fs.LocalTraining(1, 2))
    state = fs.init(algorithm, PARAMS, DATA)
    without_clients = Mesh(np.array(jax.devices()[:2]).reshape(1, 2), ("a", "b"))
    for mesh, said in ((2, "jax.sharding.Mesh.*got 2"), (without_clients, "one axis")):
        for call in (
            lambda mesh: fs.evaluate(LOSS, PARAMS, TEST, mesh=mesh),
            lambda mesh: fs.evaluator(LOSS, TEST, mesh=mesh),
            lambda mesh: fs.evaluate_clients(LOSS, algorithm, state, DATA, mesh=mesh),
        ):
            with pytest.raises(ValueError, match=f"mesh must .*{said}"):
                call(mesh)
