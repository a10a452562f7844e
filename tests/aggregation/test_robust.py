"""Rules that see all updates at once: NumPy's median under every strategy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from fedjax_sim.aggregation.robust.coordinates import coordinate_median
from fedjax_sim.core.types import Coefficients
from fedjax_sim.host.identity import program
from tests.conftest import MESH, federation, flat, linear_loss, zeros
from tests.helpers.reference import Server, blocks

LR, LOCAL = 0.02, fs.LocalTraining(2, 4, shuffle=False)
BROKEN = 7  # the client whose gradient is not finite
STRATEGIES = {
    "vmapped": fs.execution.vmapped(),
    "packed": fs.execution.packed(2),
    "sharded_vmapped": fs.execution.sharded(MESH, fs.execution.vmapped()),
    "sharded_packed": fs.execution.sharded(MESH, fs.execution.packed(1)),
}
# ids, mask, reports; of five slots. Client 2 has no examples.
COHORTS = {
    "odd": ([1, 4, 5, 0, 3], [1, 1, 1, 1, 1], [1, 1, 1, 1, 1]),
    "even, one without examples": ([1, 2, 5, 0, 6], [1, 1, 1, 1, 1], [1, 1, 1, 1, 1]),
    "one is not finite": ([5, BROKEN, 1, 0, 6], [1, 1, 1, 1, 1], [1, 1, 1, 1, 1]),
    "dropouts and padding": ([1, 4, 5, 5, 0], [1, 1, 1, 0, 1], [1, 0, 1, 1, 1]),
    "padding of one that is not finite": ([1, 4, BROKEN, 5, 0], [1, 1, 0, 0, 0], [1] * 5),
    "alone": ([4, 0, 0, 0, 0], [1, 0, 0, 0, 0], [1] * 5),
    "nobody": ([1, 4, 5, 0, 3], [0] * 5, [1] * 5),
    "nobody that is finite": ([BROKEN, 0, 0, 0, 0], [1, 0, 0, 0, 0], [1] * 5),
}


@pytest.fixture(scope="module")
def broken(clients):
    return [(x, np.full_like(y, 3e38) if k == BROKEN else y) for k, (x, y) in enumerate(clients)]


def median_round(reference, name):
    """w + np.median of the updates of those that report and are finite."""
    deltas = []
    for k, mask, reports in zip(*COHORTS[name], strict=True):
        steps = blocks(len(reference.clients[k][1]), LOCAL.epochs, LOCAL.batch_size, LOCAL.order)
        if mask and reports and steps and k != BROKEN:
            deltas.append(reference.train(k, steps) - reference.w)
    return reference.w + np.median(deltas, axis=0) if deltas else reference.w


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_equals_numpys_in_every_round(broken, strategy):
    data = federation(broken)
    algorithm = fs.fedavg(linear_loss, optax.sgd(LR), LOCAL)
    rule = fs.aggregation.median()
    round_fn = jax.jit(fs.make_round(algorithm, rule, STRATEGIES[strategy], nonfinite="drop"))
    state = fs.init(algorithm, zeros(), data)
    if "sharded" in strategy:
        data, state = fs.execution.replicate((data, state), MESH)
    reference = Server("fedavg", broken, np.ones(8), 5, LR)
    for name, (ids, mask, reports) in COHORTS.items():
        cohort = fs.Cohort(jnp.array(ids), jnp.array(mask, bool), jnp.array(reports, bool))
        state, metrics = round_fn(jax.random.key(0), state, data, cohort)
        reference.w = median_round(reference, name)
        np.testing.assert_allclose(flat(state.params), reference.w, atol=1e-5, err_msg=name)
        assert bool(metrics.empty) == name.startswith("nobody")
        taking_part = [k for k, m in zip(ids, mask, strict=True) if m]
        assert int(metrics.nonfinite) == taking_part.count(BROKEN)


def test_of_clients_that_send_one_gradient(clients, data):
    """FedSGD's pooled gradient has no single client's update: it is passed over."""
    algorithm = fs.fedsgd(linear_loss, optax.sgd(LR))
    round_fn = jax.jit(fs.make_round(algorithm, fs.aggregation.median(), fs.execution.packed(2)))
    ids = [1, 4, 5, 7]
    state = fs.init(algorithm, zeros(), data)
    state, _ = round_fn(jax.random.key(0), state, data, fs.Cohort(jnp.array(ids)))
    reference = Server("fedsgd", clients, np.ones(8), 5, LR)
    deltas = [reference.train(k, [np.arange(len(clients[k][1]))]) for k in ids]
    np.testing.assert_allclose(flat(state.params), np.median(deltas, axis=0), atol=1e-6)


def test_every_part_of_an_update_has_its_median(data):
    """A server that divides averages is given the median of each; a sweep's axis goes through."""

    def moved(lr):
        base = fs.fedavg(linear_loss, optax.sgd(lr), LOCAL)

        def finish(carry, message, client_state, num_examples, num_steps, key):
            output = base.client.finish(carry, message, (), num_examples, num_steps, key)
            return output._replace(update=(output.update, num_steps.astype(jnp.float32)))

        algorithm = base._replace(
            client=base.client._replace(finish=finish),
            init=lambda params: (base.init(params), jnp.float32(0)),
            params=lambda server: server[0].params,
            broadcast=lambda server, round: base.broadcast(server[0], round),
            server_update=lambda server, update, total, context: (
                base.server_update(server[0], update[0], total, context),
                update[1],
            ),
        )
        round_fn = fs.make_round(algorithm, fs.aggregation.median(), fs.execution.vmapped())
        state = fs.init(algorithm, zeros(), data)
        state, _ = round_fn(jax.random.key(0), state, data, fs.Cohort(jnp.array([5, 0, 4, 1])))
        return state.server[1], state.params["b"]

    # 2 ceil(n / 4) steps of clients of 23, 5, 7 and 12 examples.
    steps, bias = jax.jit(jax.vmap(moved))(jnp.array([0.01, 0.02]))
    np.testing.assert_array_equal(steps, np.median([12, 4, 4, 6]))
    assert bias[0] != bias[1]


def test_a_coordinates_median_is_numpys():
    rng = np.random.default_rng(0)
    updates = {"w": rng.normal(size=(7, 3, 2)).astype(np.float32), "b": np.zeros(7, np.float32)}
    updates["b"][:] = [3, 1, np.inf, -np.inf, 1, 2, np.inf]
    key = jax.random.key(0)
    masks = [[1] * 7, [1, 1, 0, 0, 1, 1, 0], [0, 0, 1, 1, 0, 0, 1], [0, 0, 1, 0, 0, 0, 0]]
    for mask in masks:
        counted = np.array(mask, bool)
        median = coordinate_median(updates, jnp.ones(7), jnp.array(counted), key)
        for name, x in updates.items():
            expected = np.median(x[counted].astype(np.float64), axis=0)
            np.testing.assert_allclose(median[name], expected, rtol=1e-6)
    # A NaN counts as plus infinity, unless its client is left out.
    updates["b"][0] = np.nan
    kept, dropped = (
        coordinate_median(updates, jnp.ones(7), jnp.arange(7) >= first, key)["b"]
        for first in (0, 1)
    )
    assert kept == np.median([np.inf, *updates["b"][1:]])
    assert dropped == np.median(updates["b"][1:])


def test_a_combine_of_ones_own(clients, data):
    """It is given the weights a_k, who counts, a key of the round; zeros where nobody counts."""
    seen = []

    def combine(updates, weights, counted, key):
        jax.debug.callback(
            lambda *values: seen.append(values),
            weights,
            counted,
            updates["w"],
            jax.random.key_data(key),
        )
        shares = jnp.where(counted, weights, 0) / jnp.sum(jnp.where(counted, weights, 0))
        return jax.tree.map(lambda x: jnp.tensordot(shares, x, 1), updates)

    def rule(cohort, client_weights, all_client_weights):
        return Coefficients(3 * client_weights, None, combine=combine)

    algorithm = fs.fedavg(linear_loss, optax.sgd(LR), LOCAL)
    cohort = fs.Cohort(jnp.array([1, 4, 5]), reports=jnp.array([True, False, True]))
    state = fs.init(algorithm, zeros(), data)
    plain, _ = jax.jit(fs.make_round(algorithm, execution=fs.execution.vmapped()))(
        jax.random.key(0), state, data, cohort
    )
    round_fn = jax.jit(fs.make_round(algorithm, rule, fs.execution.vmapped()))
    combined, _ = round_fn(jax.random.key(0), state, data, cohort)
    np.testing.assert_allclose(flat(combined.params), flat(plain.params), rtol=1e-5)
    round_fn(jax.random.key(0), combined, data, cohort)
    jax.effects_barrier()
    (weights, counted, updates, key), (*_, later) = seen
    np.testing.assert_array_equal(weights, [36, 21, 69])
    np.testing.assert_array_equal(counted, [True, False, True])
    assert not updates[1].any()
    assert updates[0].any()
    assert not np.array_equal(key, later)


def test_what_cannot_be_combined_is_refused(data, monkeypatch):
    algorithm = fs.fedavg(linear_loss, optax.sgd(LR), LOCAL)
    state, cohort = fs.init(algorithm, zeros(), data), fs.Cohort(jnp.arange(3))

    def trace(rule, execution=None):
        round_fn = fs.make_round(algorithm, rule, execution)
        return jax.eval_shape(round_fn, jax.random.key(0), state, data, cohort)

    def with_combine(combine):
        return lambda cohort, own, all_of_them: Coefficients(own, None, combine=combine)

    with pytest.raises(ValueError, match=r"median itself: call it, fs.aggregation.median\(\)"):
        trace(fs.aggregation.median)
    with pytest.raises(ValueError, match=r"aggregation must be fs.aggregation.median\(\), not its"):
        trace("median")
    with pytest.raises(ValueError, match="combine must be a function of the updates, or None"):
        trace(with_combine(3))
    with pytest.raises(ValueError, match=r"combine must take \(updates, weights, counted, key\)"):
        trace(with_combine(lambda updates: updates))
    with pytest.raises(ValueError, match="combine must keep the structure, shapes and dtypes of"):
        trace(with_combine(lambda updates, weights, counted, key: updates))

    def forgetful(*arguments):
        return fs.execution.vmapped()(*arguments)._replace(updates=())

    with pytest.raises(ValueError, match=r"execution must return Executed\.updates, leaves"):
        trace(fs.aggregation.median(), forgetful)
    # An update has 5 numbers of 4 bytes, and each of two devices holds three of them.
    monkeypatch.setattr("fedjax_sim.execution.machine.free_memory", lambda devices: 100.0)
    trace(fs.aggregation.median())
    with pytest.raises(ValueError, match=r"m = 3 updates of 20 bytes on 2 device.*are free"):
        trace(fs.aggregation.median(), fs.execution.sharded(MESH))


def test_a_resume_knows_one_combine_from_another(data):
    def checksum(rule):
        experiment = fs.Experiment(
            fs.fedavg(linear_loss, optax.sgd(LR), LOCAL),
            zeros(),
            data,
            fs.sampling.uniform(3),
            2,
            aggregation=rule,
        )
        return program(lambda key: experiment, jax.random.key(0))["parts"]

    def halved(cohort, client_weights, all_client_weights):
        whole = fs.aggregation.median()(cohort, client_weights, all_client_weights)

        def combine(*given):
            return jax.tree.map(lambda x: x / 2, coordinate_median(*given))

        return whole._replace(combine=combine)

    median = checksum(fs.aggregation.median())
    assert median == checksum(fs.aggregation.median())
    differing = {name for name, x in checksum(halved).items() if x != median[name]}
    assert differing == {"aggregation"}
