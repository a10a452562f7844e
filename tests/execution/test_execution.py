"""What is the strategies' own: their queues, deals, choices and refusals."""

import dataclasses
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from fedjax_sim.execution.automatic import Automatic
from fedjax_sim.execution.client import block_sizes
from fedjax_sim.execution.sharded import _deal, _deal_slots
from tests.conftest import MESH, SIZES, federation, flat, linear_loss, slow_after, zeros

LOCAL = fs.LocalTraining(2, 4)


def counting(data, execution, num_clients, local=LOCAL):
    """(params, steps that lanes took, steps asked for) of one round of all clients."""
    taken = []

    def loss_fn(params, batch, key):
        jax.debug.callback(lambda _: taken.append(1), batch["x"][0, 0])
        return linear_loss(params, batch, key)

    algorithm = fs.fedavg(loss_fn, optax.sgd(0.02), local)
    round_fn = jax.jit(fs.make_round(algorithm, execution=execution))
    state = fs.init(algorithm, zeros(), data)
    cohort = fs.Cohort(jnp.arange(num_clients))
    state, metrics = jax.block_until_ready(round_fn(jax.random.key(0), state, data, cohort))
    jax.effects_barrier()
    return state.params, len(taken), int(metrics.client_steps)


@pytest.mark.parametrize("lanes", [1, 2, 4, 8])
def test_lanes_take_few_steps_that_nobody_needs(data, lanes):
    """At most what longest-first scheduling needs; the tail is trained one by one."""
    _, taken, asked = counting(data, fs.execution.packed(lanes), len(SIZES))
    steps = sorted((2 * -(-n // 4) for n in SIZES), reverse=True)
    ends = np.zeros(lanes, int)
    for n in steps:
        ends[ends.argmin()] += n
    assert asked == sum(steps)
    assert asked <= taken <= lanes * ends.max()
    if lanes == 1:
        assert taken == asked


def test_one_long_client_does_not_keep_the_other_lanes_busy():
    sizes = [400, 8, 8, 8, 8]
    rng = np.random.default_rng(0)
    data = federation([(rng.normal(size=(n, 4)), rng.normal(size=n)) for n in sizes])
    _, taken, asked = counting(data, fs.execution.packed(4), 5)
    assert asked == 2 * (100 + 4 * 2)
    assert taken <= 1.1 * asked


@pytest.mark.parametrize("devices", [2, 3])
@pytest.mark.parametrize("seed", range(5))
def test_work_is_dealt_evenly(devices, seed):
    steps = jnp.asarray(np.random.default_rng(seed).integers(0, 50, 20), jnp.int32)
    dealt = np.asarray(_deal(steps, devices))
    loads = np.bincount(dealt, weights=np.asarray(steps), minlength=devices)
    # Graham 1969: longest first ends within 4/3 - 1/(3D) of the best.
    best = max(loads.sum() / devices, float(steps.max()))
    assert loads.max() <= best * (4 / 3 - 1 / (3 * devices)) + 1e-6


@pytest.mark.parametrize("devices", [1, 2, 3])
@pytest.mark.parametrize("m", [1, 2, 7, 12])
def test_every_slot_is_dealt_once(devices, m):
    steps = jnp.asarray(np.random.default_rng(m).integers(0, 9, m), jnp.int32)
    seen = []
    for me in range(devices):
        slots, mine = _deal_slots(steps, devices, jnp.int32(me))
        assert len(slots) == -(-m // devices)
        seen += np.asarray(slots)[np.asarray(mine)].tolist()
    assert sorted(seen) == list(range(m))


@pytest.mark.parametrize(("queues", "sizes"), [(True, (12, 1, 12, 1)), (False, (12, 1, 1, 12))])
def test_fedsgd_is_dealt_by_examples(queues, sizes):
    """By steps, of which each has one, a device gets both large; full batches cost by size, too."""
    data = fs.FederatedData.from_clients([np.ones(n, np.float32) for n in sizes])
    given = []

    def seeing(engine, client_states, tasks, options):
        sizes = engine.data.num_examples[tasks.client_ids]
        examples = jnp.sum(jnp.where(tasks.num_steps > 0, sizes, 0))
        jax.debug.callback(lambda n: given.append(int(n)), examples)
        return fs.execution.packed(1)(engine, client_states, tasks, options)

    class Queue(fs.execution.Strategy):
        queues = True

        def __call__(self, *arguments):
            return seeing(*arguments)

    def loss_fn(w, batch, key):
        return (w - batch) ** 2

    algorithm = fs.fedsgd(loss_fn, optax.sgd(0.1))
    state = fs.init(algorithm, 0.0, data)
    cohort = fs.Cohort(jnp.array([0, 1, 2, 3]))
    execution = fs.execution.sharded(MESH, Queue() if queues else seeing)
    for nonfinite, shares in (("keep", [13, 13]), ("drop", [13, 13])):
        round_fn = jax.jit(fs.make_round(algorithm, execution=execution, nonfinite=nonfinite))
        jax.block_until_ready(round_fn(jax.random.key(0), state, data, cohort))
        jax.effects_barrier()
        assert sorted(given) == shares
        given.clear()


def test_without_replicate_the_second_call_traces_again(data):
    """The state comes back on the mesh; put there at the start, one trace serves."""
    algorithm = fs.fedavg(linear_loss, optax.sgd(0.02), LOCAL)
    for replicated, expected in ((False, 2), (True, 1)):
        traces = []

        def counted(key, state, data, cohort, traces=traces):
            traces.append(1)
            round_fn = fs.make_round(algorithm, execution=fs.execution.sharded(MESH))
            return round_fn(key, state, data, cohort)

        step, federation_, state = jax.jit(counted), data, fs.init(algorithm, zeros(), data)
        if replicated:
            federation_, state = fs.execution.replicate((data, state), MESH)
        for seed in range(3):
            cohort = fs.Cohort(jnp.array([0, 1, 4]))
            state, _ = step(jax.random.key(seed), state, federation_, cohort)
        assert len(traces) == step._cache_size() == expected


def test_replicate_places_keys():
    key = jax.random.key(7, impl="rbg")
    placed = fs.execution.replicate({"key": key}, MESH)["key"]
    assert placed.sharding.device_set == set(MESH.devices.flat)
    assert jax.random.key_impl(placed) == jax.random.key_impl(key)
    np.testing.assert_array_equal(jax.random.key_data(placed), jax.random.key_data(key))


def test_sharded_run_equals_one_device_and_traces_once(data):
    """In a run, with client state kept; and the federation has one copy on CPUs."""
    algorithm = fs.scaffold(linear_loss, 0.02, LOCAL)
    traces, results = [], []
    for execution in (fs.execution.packed(1), fs.execution.sharded(MESH)):
        placed = (data, fs.init(algorithm, zeros(), data))
        if execution != fs.execution.packed(1):
            placed = fs.execution.replicate(placed, MESH)
            shards = placed[0].examples["x"].addressable_shards
            assert len({x.data.unsafe_buffer_pointer() for x in shards}) == 1

        def rounds(key, data, state, execution=execution):
            traces.append(1)
            round_fn = fs.make_round(algorithm, execution=execution)
            return fs.run(round_fn, key, state, data, fs.sampling.uniform(5), 3)

        compiled = jax.jit(rounds)
        state, history = compiled(jax.random.key(1), *placed)
        state, _ = compiled(jax.random.key(1), placed[0], state)
        results.append((flat(state.params), flat(state.server.control), history.rounds))
    assert len(traces) == 2
    for a, b in zip(jax.tree.leaves(results[0]), jax.tree.leaves(results[1]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("inner", [fs.execution.vmapped(), fs.execution.packed(1)])
def test_client_state_of_any_type_finds_its_way_home(data, inner):
    base = fs.fedavg(linear_loss, optax.sgd(0.02), LOCAL)

    def finish(carry, message, client_state, num_examples, num_steps, key):
        done, seen, name = client_state
        output = base.client.finish(carry, message, (), num_examples, num_steps, key)
        return output._replace(client_state=(done + num_steps, ~seen, name - 0.5))

    algorithm = base._replace(
        init_client=lambda params: (jnp.int32(0), jnp.array(False), jnp.float32(0)),
        client=base.client._replace(finish=finish),
    )
    round_fn = jax.jit(fs.make_round(algorithm, execution=fs.execution.sharded(MESH, inner)))
    state = fs.init(algorithm, zeros(), data)
    cohort = fs.Cohort(jnp.array([5, 0, 2, 3, 7]), jnp.array([True, True, True, False, True]))
    for _ in range(2):
        state, _ = round_fn(jax.random.key(0), state, data, cohort)
    done, seen, name = (np.asarray(x) for x in state.clients)
    steps = [2 * -(-n // 4) for n in SIZES]
    taking_part = [5, 0, 7]  # client 2 has no examples, slot 3 is padding
    np.testing.assert_array_equal(done, [2 * n * (k in taking_part) for k, n in enumerate(steps)])
    np.testing.assert_array_equal(seen, np.zeros(8, bool))
    np.testing.assert_array_equal(name, [-1.0 * (k in taking_part) for k in range(8)])


def test_sharded_vmapped_has_a_gradient(data):
    def last(lr, execution):
        algorithm = fs.fedavg(linear_loss, optax.sgd(lr), LOCAL)
        round_fn = fs.make_round(algorithm, execution=execution)
        state = fs.init(algorithm, zeros(), data)
        state, _ = round_fn(jax.random.key(0), state, data, fs.Cohort(jnp.array([1, 4, 5])))
        return jnp.sum(state.params["w"] ** 2)

    gradient = jax.jit(jax.grad(last), static_argnums=1)
    own = gradient(0.02, fs.execution.vmapped())
    dealt = gradient(0.02, fs.execution.sharded(MESH, fs.execution.vmapped()))
    np.testing.assert_allclose(dealt, own, rtol=1e-5)


def test_cores_are_devices():
    mesh = fs.execution.cores(1)
    assert mesh.axis_names == ("clients",)
    assert mesh.size == 1
    # JAX runs with two here: all of them, or as many as there are cores.
    assert fs.execution.cores().size <= 2


def test_automatic_follows_its_rule(monkeypatch):
    module = importlib.import_module("fedjax_sim.execution.automatic")
    if jax.default_backend() != "cpu":
        pytest.skip("of a CPU, and of what it takes for a GPU")

    def choice(sizes, m, width, mesh=None, local=LOCAL):
        clients = [{"x": np.ones((n, width), np.float32), "y": np.ones(n)} for n in sizes]
        data = fs.FederatedData.from_clients(clients)
        params = {"w": np.zeros(width, np.float32), "b": np.float32(0)}
        algorithm = fs.fedavg(linear_loss, optax.sgd(0.1), local)
        seen = []

        class Seeing(Automatic):
            def chosen(self, *args):
                seen.append(super().chosen(*args))
                return seen[-1]

        execution = Seeing() if mesh is None else fs.execution.sharded(mesh, Seeing())
        round_fn = fs.make_round(algorithm, execution=execution)
        state = fs.init(algorithm, params, data)
        cohort = fs.Cohort(jnp.arange(m))
        jax.eval_shape(round_fn, jax.random.key(0), state, data, cohort)
        return seen[0]

    vmapped, packed = fs.execution.vmapped(), fs.execution.packed()
    monkeypatch.setattr(
        module, "cache_bytes", lambda: 4 * 15
    )  # a third of three blocks of 3 (4 + 1)
    assert choice([3, 3, 3, 3], 3, 4) == vmapped
    assert choice([3, 2, 3, 3], 3, 4) == packed
    assert choice([3, 3, 3, 3], 4, 4) == packed
    alone = fs.LocalTraining(2, 1)  # a block as large as a model, of 4 + 1 numbers
    assert choice([3] * 10, 9, 4, local=alone) == vmapped
    assert choice([3] * 10, 10, 4, local=alone) == packed
    # A device runs ceil(4 / 2) of them.
    assert choice([3, 3, 3, 3], 4, 4, MESH) == vmapped
    monkeypatch.setattr(module, "platform_of", lambda engine: "gpu")
    assert choice([3, 3, 3, 3], 4, 4) == vmapped
    monkeypatch.setattr(module, "DEVICE_BYTES", 3 * 4 * 5)
    assert choice([3, 3, 3, 3], 4, 4) == packed
    assert choice([3, 3, 3, 3], 3, 4) == vmapped


@pytest.mark.parametrize(
    ("available", "m", "lanes"), [(1, 9, 1), (2, 9, 1), (4, 9, 2), (8, 3, 3), (64, 9, 8)]
)
def test_lanes_by_default(data, monkeypatch, available, m, lanes):
    """On two devices: one lane for each core of a device."""
    if jax.default_backend() != "cpu":
        pytest.skip("of a CPU")
    module = importlib.import_module("fedjax_sim.execution.packed")
    monkeypatch.setattr(module, "num_cores", lambda: available)
    packed = fs.execution.packed()
    chosen = []

    class Seeing(type(packed)):
        def side_by_side(self, *args):
            chosen.append(super().side_by_side(*args))
            return chosen[-1]

    algorithm = fs.fedavg(linear_loss, optax.sgd(0.1), LOCAL)
    round_fn = fs.make_round(algorithm, execution=Seeing(None))
    state = fs.init(algorithm, zeros(), data)
    cohort = fs.Cohort(jnp.arange(m) % len(SIZES))
    jax.eval_shape(round_fn, jax.random.key(0), state, data, cohort)
    assert chosen == [lanes]


def test_bad_strategies_are_refused(data):
    packed = fs.execution.packed
    algorithm = fs.fedavg(linear_loss, optax.sgd(0.1), LOCAL)
    state = fs.init(algorithm, zeros(), data)
    with pytest.raises(ValueError, match=r"lanes must be at most m = 2.*got 3"):
        fs.make_round(algorithm, execution=packed(3))(
            jax.random.key(0), state, data, fs.Cohort(jnp.arange(2))
        )
    with pytest.raises(ValueError, match=r"n must be at most the \d+ cores.*got 100000"):
        fs.execution.cores(100_000)
    with pytest.raises(ValueError, match=r"n must be .*got 0"):
        fs.execution.cores(0)
    with pytest.raises(ValueError, match=r"mesh must be a jax.sharding.Mesh"):
        fs.execution.sharded(2)
    two = jax.sharding.Mesh(np.array(jax.devices()).reshape(2, 1), ("a", "b"))
    with pytest.raises(ValueError, match='mesh must have one axis, or one named "clients"'):
        fs.execution.sharded(two)
    for inner in (fs.execution.sharded(MESH), "packed"):
        with pytest.raises(ValueError, match="inner must be"):
            fs.execution.sharded(MESH, inner)
    with pytest.raises(ValueError, match="sharded itself: call it"):
        fs.make_round(algorithm, execution=fs.execution.sharded)


def full_batches(execution, padded, seeds=None):
    """(params after a round of full batches, the sizes of the blocks that the loss met)."""
    met = set()

    def loss_fn(params, batch, key):
        size = batch["x"].shape[0]
        jax.debug.callback(lambda _: met.add(size), batch["x"][0, 0])
        noise = jax.random.normal(key, (size,))
        return linear_loss(params, batch, key) + 0.1 * noise * params["b"]

    rng = np.random.default_rng(0)
    sizes = [3, 20, 40, 400, 18]
    data = federation([(rng.normal(size=(n, 4)), rng.normal(size=n)) for n in sizes])
    assert data.padded_sizes == (20, 40, 400)
    if not padded:
        data = dataclasses.replace(data, padded_sizes=())
    algorithm = fs.fedavg(loss_fn, optax.sgd(0.02), fs.LocalTraining(2, None))
    round_fn = fs.make_round(algorithm, execution=execution)
    state = fs.init(algorithm, zeros(), data)

    def params(seed):
        cohort = fs.Cohort(jnp.array([0, 1, 2, 4]))
        return flat_params(round_fn(jax.random.key(seed), state, data, cohort)[0].params)

    result = jax.jit(params if seeds is None else jax.vmap(params))(
        jnp.int32(0) if seeds is None else jnp.arange(seeds)
    )
    jax.effects_barrier()
    return np.asarray(jax.block_until_ready(result)), met


def flat_params(params):
    return jnp.concatenate([params["w"], params["b"][None]])


@pytest.mark.parametrize(
    ("execution", "sizes", "seeds"),
    [
        (fs.execution.packed(2), {20, 40}, 2),
        (fs.execution.vmapped(), {40}, None),
        pytest.param(fs.execution.packed(1), {20, 40}, None, marks=pytest.mark.slow),
        pytest.param(fs.execution.packed(1), {20, 40}, 2, marks=pytest.mark.slow),
        pytest.param(fs.execution.packed(2), {20, 40}, None, marks=pytest.mark.slow),
        pytest.param(fs.execution.vmapped(), {40}, 2, marks=pytest.mark.slow),
    ],
)
def test_a_large_client_elsewhere_does_not_pad_full_batches(execution, sizes, seeds):
    """The client of 400 takes no part: no block is padded to it, and no draw changes."""
    got, met = full_batches(execution, True, seeds)
    expected, met_before = full_batches(execution, False, seeds)
    assert met == sizes
    assert met_before == {400}
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("independent", [True, False])
def test_full_batches_are_of_one_size_where_draws_depend_on_it(independent):
    """Of an older generator of JAX's the first numbers are others where more are drawn."""
    with jax.threefry_partitionable(independent):
        draws = [jax.random.normal(jax.random.key(0), (size,))[:3] for size in (20, 40)]
        assert np.array_equal(*draws) == independent
        data = federation([(np.ones((n, 4)), np.ones(n)) for n in (3, 20, 40, 400, 18)])
        sizes = block_sizes(fs.LocalTraining(1, None), data)
        assert sizes == ((20, 40, 400) if independent else (400,))


def test_full_batches_of_a_few_sizes_have_a_gradient(clients):
    data = federation([*clients, *[(np.tile(x, (9, 1)), np.tile(y, 9)) for x, y in clients]])
    assert len(data.padded_sizes) > 1

    def last(lr, data):
        algorithm = fs.fedavg(linear_loss, optax.sgd(lr), fs.LocalTraining(2, None))
        round_fn = fs.make_round(algorithm, execution=fs.execution.vmapped())
        state = fs.init(algorithm, zeros(), data)
        state, _ = round_fn(jax.random.key(0), state, data, fs.Cohort(jnp.array([1, 4, 5])))
        return jnp.sum(state.params["w"] ** 2)

    slope = jax.jit(jax.grad(last))
    alone = dataclasses.replace(data, padded_sizes=())
    np.testing.assert_allclose(slope(0.02, data), slope(0.02, alone), rtol=1e-5)


@pytest.mark.parametrize(
    "inner", slow_after(1, [fs.execution.packed(1), fs.execution.vmapped()]), ids=repr
)
def test_a_client_may_keep_a_typed_key(inner, data):
    """Alone and dealt over devices: the same key, whatever else the state holds."""
    algorithm = fs.fedavg(linear_loss, optax.sgd(0.1), LOCAL)

    def init_client(params):
        return {"key": jax.random.key(3), "times": jnp.int32(0), "seen": jnp.array(False)}

    def finish(carry, message, state, num_examples, num_steps, key):
        kept = {
            "key": jax.random.fold_in(state["key"], num_examples),
            "times": state["times"] + 1,
            "seen": ~state["seen"],
        }
        return algorithm.client.finish(carry, message, (), num_examples, num_steps, key)._replace(
            client_state=kept
        )

    keeping = algorithm._replace(
        init_client=init_client, client=algorithm.client._replace(finish=finish)
    )
    state, cohort = fs.init(keeping, zeros(), data), fs.Cohort(jnp.array([0, 3, 2]))
    expected = np.array(
        [jax.random.key_data(jax.random.fold_in(jax.random.key(3), n)) for n in (5, 1)]
    )
    untouched = np.asarray(jax.random.key_data(jax.random.key(3)))
    for strategy in (inner, fs.execution.sharded(MESH, inner)):
        round_fn = jax.jit(fs.make_round(keeping, execution=strategy))
        clients = round_fn(jax.random.key(0), state, data, cohort)[0].clients
        bits = np.asarray(jax.random.key_data(clients["key"]))
        np.testing.assert_array_equal(bits[[0, 3]], expected)
        np.testing.assert_array_equal(bits[[1, 2]], np.stack([untouched] * 2))  # 2 has no examples
        np.testing.assert_array_equal(clients["times"], [1, 0, 0, 1, 0, 0, 0, 0])
        np.testing.assert_array_equal(clients["seen"], clients["times"] == 1)
