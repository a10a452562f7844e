"""What is measured over the devices of a mesh is what one device measures."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh

import fedjax_sim as fs
from fedjax_sim.core.graphs import operations
from fedjax_sim.execution.mapped import map_over_devices
from fedjax_sim.host.fingerprint import traced
from tests.conftest import MESH

WITH_A_MODEL_AXIS = Mesh(MESH.devices.reshape(-1, 1), ("clients", "model"))
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


def dealt(measure, mesh, argument):
    """What `measure(mesh)` is of the argument, which with a mesh has to be dealt over it."""
    graph = jax.make_jaxpr(measure(mesh))(argument)
    assert ("shard_map" in operations(graph)) == (mesh is not None)
    return jax.jit(measure(mesh))(argument)


def square(number):
    return {"square": number * number}


@pytest.mark.parametrize("mesh", [MESH, WITH_A_MODEL_AXIS])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_numbers_are_mapped_once_each_and_in_their_order(count, mesh):
    squares = dealt(
        lambda mesh: lambda n: map_over_devices(square, n, (), mesh),
        mesh,
        jnp.arange(3, 3 + count),
    )["square"]
    np.testing.assert_array_equal(squares, np.arange(3, 3 + count) ** 2)
    assert squares.sharding.is_fully_replicated


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_evaluate_over_devices_is_that_of_one(batch_size):
    def noisy(params, batch, key):
        losses, metrics = LOSS(params, batch, key)
        return losses, {**metrics, "draw": jax.random.uniform(key, losses.shape)}

    def measure(mesh):
        options = {"key": jax.random.key(7), "batch_size": batch_size, "mesh": mesh}
        return lambda params: fs.evaluate(noisy, params, TEST, **options)

    same(dealt(measure, MESH, PARAMS), dealt(measure, None, PARAMS))


def test_what_lies_on_the_mesh_is_measured_there():
    """As in a loop of one's own: the arrays of a mesh have a type that tells of it."""
    algorithm = fs.ifca(LOSS, optax.sgd(0.1), fs.LocalTraining(1, 2), num_models=2)
    state = fs.init(algorithm, jax.vmap(MODEL.init)(jax.random.split(jax.random.key(1))), DATA)
    tuning = fs.FineTuning(optax.sgd(0.2), fs.LocalTraining(1, 2))

    def measure(params, state, data, test, key, mesh=None):
        of_model = fs.evaluate(LOSS, params, test, key=key, batch_size=4, mesh=mesh)
        options = {"test": test, "fine_tune": tuning, "key": key, "mesh": mesh}
        return of_model, fs.evaluate_clients(LOSS, algorithm, state, data, **options)

    arguments = (PARAMS, state, DATA, TEST, jax.random.key(2))
    placed = fs.execution.replicate(arguments, MESH)
    same(jax.jit(partial(measure, mesh=MESH))(*placed), jax.jit(measure)(*arguments))


def test_a_source_over_devices_is_that_in_memory():
    def measure_of(data):
        options = {"data": data, "batch_size": 6}
        return lambda mesh: lambda params: fs.evaluate(LOSS, params, **options, mesh=mesh)

    in_memory = dealt(measure_of(TEST), None, PARAMS)
    same(dealt(measure_of(fs.data.Source.of(TEST)), MESH, PARAMS), in_memory)


@pytest.mark.parametrize("personal", [False, True])
def test_a_run_measured_over_its_devices_is_that_of_one(personal):
    sgd = optax.sgd(0.1)
    local = fs.LocalTraining(1, 2)
    algorithm = fs.fedavg(LOSS, sgd, local)
    own = {}
    if personal:
        algorithm = fs.fedper(LOSS, sgd, local, personal="*bias")
        own = {"personal": algorithm, "train": DATA}
    state = fs.init(algorithm, PARAMS, DATA)

    def measure(mesh):
        return fs.evaluator(LOSS, TEST, DATA, **own, batch_size=4, mesh=mesh)

    def run(mesh):
        experiment = fs.Experiment(
            algorithm,
            PARAMS,
            DATA,
            fs.sampling.uniform(3),
            num_rounds=3,
            execution=fs.execution.sharded(MESH),
            evaluate=measure(mesh),
        )
        return fs.simulate(experiment, jax.random.key(3)).history

    # To rounding, because XLA compiles the statistics together with what is before them.
    close = partial(np.testing.assert_allclose, rtol=1e-6)
    jax.tree.map(close, run(MESH), run(None))
    subject = state if personal else state.params
    jax.tree.map(close, dealt(measure, MESH, subject), dealt(measure, None, subject))


def test_fine_tuning_over_devices_is_that_of_one():
    algorithm = fs.fedavg(LOSS, optax.sgd(0.1), fs.LocalTraining(1, 2))
    state = fs.init(algorithm, PARAMS, DATA)
    options = {"test": TEST, "fine_tune": fs.FineTuning(optax.sgd(0.2), fs.LocalTraining(2, 2))}

    def measure(mesh):
        return lambda state: fs.evaluate_clients(LOSS, algorithm, state, DATA, **options, mesh=mesh)

    one_device = dealt(measure, None, state)
    same(dealt(measure, MESH, state), one_device)
    read = fs.evaluate_clients(
        LOSS, algorithm, state, fs.data.Source.of(DATA), **options, mesh=MESH
    )
    same(read, one_device)


def test_a_saved_run_goes_on_over_other_devices():
    """A run's checksum is of what is measured, and not of where."""

    def checksum(test, mesh=None):
        return traced(lambda p: {"mean": fs.evaluate(LOSS, p, test, mesh=mesh).mean}, PARAMS)

    assert checksum(TEST, MESH) == checksum(TEST)
    assert checksum(DATA) != checksum(TEST)


def test_what_is_not_a_mesh_of_clients_is_refused():
    algorithm = fs.fedavg(LOSS, optax.sgd(0.1), fs.LocalTraining(1, 2))
    state = fs.init(algorithm, PARAMS, DATA)
    without_clients = Mesh(MESH.devices.reshape(1, -1), ("a", "b"))
    for mesh, message in ((2, "jax.sharding.Mesh.*got 2"), (without_clients, "one axis")):
        for call in (
            lambda mesh: fs.evaluate(LOSS, PARAMS, TEST, mesh=mesh),
            lambda mesh: fs.evaluator(LOSS, TEST, mesh=mesh),
            lambda mesh: fs.evaluate_clients(LOSS, algorithm, state, DATA, mesh=mesh),
        ):
            with pytest.raises(ValueError, match=f"mesh must .*{message}"):
                call(mesh)
