"""Identities between algorithms."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from fedjax_sim.core.loss import uses_key
from tests.conftest import flat, linear_loss, slow_after, zeros
from tests.helpers.reference import gradient

LOCAL = fs.LocalTraining(2, 4)
KEY = jax.random.key(0)


def run(algorithm, data, rounds=4, rule=fs.aggregation.selected, sampler=None, params=None):
    round_fn = fs.make_round(algorithm, rule, fs.execution.vmapped())  # compiles fastest
    sampler = sampler or fs.sampling.uniform(4)
    state = fs.init(algorithm, zeros() if params is None else params, data)
    return jax.jit(lambda state: fs.run(round_fn, KEY, state, data, sampler, rounds))(state)[0]


def test_fedprox_without_mu_is_fedavg(data):
    prox = run(fs.fedprox(linear_loss, optax.sgd(0.05), LOCAL, mu=0.0), data)
    avg = run(fs.fedavg(linear_loss, optax.sgd(0.05), LOCAL), data)
    np.testing.assert_array_equal(flat(prox.params), flat(avg.params))
    held = run(fs.fedprox(linear_loss, optax.sgd(0.05), LOCAL, mu=10.0), data)
    assert np.linalg.norm(flat(held.params)) < np.linalg.norm(flat(avg.params))


def test_scaffolds_first_round_is_fedavg(data):
    ends = []
    for algorithm in (
        fs.scaffold(linear_loss, 0.05, LOCAL),
        fs.fedavg(linear_loss, optax.sgd(0.05), LOCAL),
    ):
        round_fn, state = jax.jit(fs.make_round(algorithm)), fs.init(algorithm, zeros(), data)
        ends.append([])
        for _ in range(2):
            cohort = fs.sampling.uniform(4).sample(KEY, state.round, data)
            state, _ = round_fn(KEY, state, data, cohort)
            ends[-1].append(flat(state.params))
    for scaffold, avg, equal in zip(*ends, (True, False), strict=True):
        assert np.allclose(scaffold, avg, atol=1e-7) == equal


def test_scaffold_of_either_option(clients, data):
    """Two rounds of one full step: c_k+ = grad F_k(x) in both options."""
    ends = [
        run(fs.scaffold(linear_loss, 0.05, fs.LocalTraining(1, None), option=option), data, 2)
        for option in (1, 2)
    ]
    for one, two in zip(*(jax.tree.leaves((x.server, x.clients)) for x in ends), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-5)
    expected = [gradient(np.zeros(5), *clients[k]) if len(clients[k][1]) else 0 for k in range(8)]
    sampled = fs.sampling.uniform(4).sample(KEY, 0, data).client_ids
    first = run(fs.scaffold(linear_loss, 0.05, LOCAL, option=1), data, 1).clients
    for k in np.asarray(sampled):
        got = np.append(np.asarray(first["w"][k]), np.asarray(first["b"][k]))
        np.testing.assert_allclose(got, expected[k], atol=1e-5)
    with pytest.raises(ValueError, match="option must be 1 or 2; got 3"):
        fs.scaffold(linear_loss, 0.05, LOCAL, option=3)


def test_scaffold_goes_to_the_optimum_where_fedavg_drifts(clients, data):
    """Heterogeneous least squares, many local steps: only SCAFFOLD's fixed point is optimal."""
    x = np.concatenate([c[0] for c in clients])
    y = np.concatenate([c[1] for c in clients])
    best = np.linalg.lstsq(np.column_stack([x, np.ones(len(x))]), y, rcond=None)[0]
    local = fs.LocalTraining(10, None)
    everyone = fs.sampling.everyone()
    scaffold = run(fs.scaffold(linear_loss, 0.02, local), data, 300, sampler=everyone)
    avg = run(fs.fedavg(linear_loss, optax.sgd(0.02), local), data, 300, sampler=everyone)
    np.testing.assert_allclose(flat(scaffold.params), best, atol=1e-3)
    assert np.abs(flat(avg.params) - best).max() > 1e-2


@pytest.mark.parametrize("kind", ["fedavg", "fedsgd", "fedprox", "scaffold"])
@pytest.mark.parametrize(
    "rule", slow_after(1, [fs.aggregation.all_clients, fs.aggregation.selected])
)
def test_one_full_step_of_everyone_is_gradient_descent(clients, data, kind, rule):
    local = fs.LocalTraining(1, None)
    algorithm = {
        "fedavg": lambda: fs.fedavg(linear_loss, optax.sgd(0.05), local),
        "fedsgd": lambda: fs.fedsgd(linear_loss, optax.sgd(0.05)),
        "fedprox": lambda: fs.fedprox(linear_loss, optax.sgd(0.05), local, mu=1.0),
        "scaffold": lambda: fs.scaffold(linear_loss, 0.05, local),
    }[kind]()
    got = run(algorithm, data, 5, rule, fs.sampling.everyone())
    x = np.concatenate([c[0] for c in clients])
    y = np.concatenate([c[1] for c in clients])
    w = np.zeros(5)
    for _ in range(5):
        w = w - 0.05 * gradient(w, x, y)
    np.testing.assert_allclose(flat(got.params), w, atol=1e-5)


def test_fedsgd_is_fedavg_of_one_full_step(data):
    # The two readings; the contract has every rule beside the reference, in either algorithm.
    for rule in (fs.aggregation.selected, fs.aggregation.all_clients):
        one = run(fs.fedsgd(linear_loss, optax.sgd(0.05)), data, 5, rule)
        two = run(fs.fedavg(linear_loss, optax.sgd(0.05), fs.LocalTraining(1, None)), data, 5, rule)
        np.testing.assert_allclose(flat(one.params), flat(two.params), atol=1e-6)


def shapes(jaxpr):
    """Every shape of every equation's outputs, inner jaxprs included."""
    for equation in jaxpr.eqns:
        for out in equation.outvars:
            yield out.aval.shape
        for value in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
        ):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from shapes(inner)


@pytest.mark.parametrize("execution", [fs.execution.vmapped(), fs.execution.packed(2)])
def test_fedsgd_makes_no_copy_of_the_model_for_a_client(execution):
    m, width = 7, 1013
    data = fs.FederatedData.from_clients([np.ones((2, width), np.float32)] * m)

    def round_shapes(algorithm):
        state = fs.init(algorithm, np.zeros(width, np.float32), data)
        cohort = fs.sampling.everyone().sample(KEY, 0, data)
        round_fn = fs.make_round(algorithm, execution=execution)
        return set(shapes(jax.make_jaxpr(round_fn)(KEY, state, data, cohort).jaxpr))

    def loss_fn(w, batch, key):
        return batch @ w

    lanes = m if execution == fs.execution.vmapped() else 2
    assert (lanes, width) in round_shapes(fs.fedavg(loss_fn, optax.sgd(0.1), LOCAL))
    pooled = round_shapes(fs.fedsgd(loss_fn, optax.sgd(0.1)))
    assert (width,) in pooled
    assert not {shape for shape in pooled if shape in ((m, width), (2, width))}


def test_a_loss_that_draws_takes_its_examples_one_by_one():
    def loss(params, batch, key):
        return batch["x"] @ params

    def drawing(params, batch, key):
        return loss(params, batch, key) + jax.random.normal(key, batch["x"].shape[:1])

    arguments = np.ones(3, np.float32), {"x": np.ones((4, 3), np.float32)}, KEY
    assert not uses_key(loss, *arguments)
    assert uses_key(drawing, *arguments)
    assert uses_key(lambda *given: jax.jit(drawing)(*given), *arguments)


@pytest.mark.slow
def test_fedsgd_over_several_blocks(monkeypatch, data):
    from fedjax_sim.execution import pooled

    whole = run(fs.fedsgd(linear_loss, optax.sgd(0.05)), data)
    monkeypatch.setattr(pooled, "_CPU_BLOCK", 5)
    for execution in (fs.execution.vmapped(), fs.execution.packed(2)):
        algorithm = fs.fedsgd(linear_loss, optax.sgd(0.05))
        round_fn = fs.make_round(algorithm, execution=execution)
        state, _ = jax.jit(
            lambda s, f=round_fn: fs.run(f, KEY, s, data, fs.sampling.uniform(4), 4)
        )(fs.init(algorithm, zeros(), data))
        np.testing.assert_allclose(flat(state.params), flat(whole.params), atol=1e-6)


def test_a_random_loss_draws_the_same_in_every_strategy(data):
    def noisy(params, batch, key):
        noise = jax.random.normal(key, (len(batch["y"]),))
        return linear_loss(params, batch, key) * (1 + 0.5 * noise)

    cohort = fs.Cohort(jnp.array([1, 5, 7, 3]), jnp.ones(4, bool))
    turned = jax.tree.map(lambda x: x[::-1], cohort)
    for make in (
        lambda: fs.fedavg(noisy, optax.sgd(0.02), LOCAL),
        lambda: fs.fedsgd(noisy, optax.sgd(0.02)),
    ):
        results = []
        for execution in (fs.execution.vmapped(), fs.execution.packed(1), fs.execution.packed(3)):
            algorithm = make()
            round_fn = jax.jit(fs.make_round(algorithm, execution=execution))
            for one in (cohort, turned):
                state, _ = round_fn(KEY, fs.init(algorithm, zeros(), data), data, one)
                results.append(flat(state.params))
        for result in results[1:]:
            np.testing.assert_allclose(result, results[0], atol=1e-6)


def test_adaptive_server_optimizer(data):
    """FedAdam's first step, by hand: w + lr u / (|u| + eps), bias-corrected."""
    with jax.numpy_dtype_promotion("standard"):
        local = fs.LocalTraining(1, None)
        adam = fs.fedavg(linear_loss, optax.sgd(0.05), local, optax.adam(0.1, eps=1e-3))
        plain = run(fs.fedavg(linear_loss, optax.sgd(0.05), local), data, 1)
        update = flat(plain.params)
        expected = 0.1 * update / (np.abs(update) + 1e-3)
        np.testing.assert_allclose(flat(run(adam, data, 1).params), expected, rtol=1e-4)
