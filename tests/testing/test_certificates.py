"""Certificates: what is right has one, and of what breaks a law they say which, and where."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from fedjax_sim.testing import ContractError
from tests.aggregation import references as numpy

RATE = 0.02


def fedavg(loss_fn, local):
    return fs.fedavg(loss_fn, optax.sgd(RATE), local)


def fedprox(loss_fn, local, mu=0.1):
    return fs.fedprox(loss_fn, optax.sgd(RATE), local, mu)


def product_of_averages(loss_fn, local):
    """A FedNova that forgets to divide by the share: two averages are multiplied."""
    base = fedavg(loss_fn, local)

    def finish(carry, message, state, num_examples, num_steps, key):
        sent = base.client.finish(carry, message, state, num_examples, num_steps, key)
        steps = num_steps.astype(jnp.float32)
        return sent._replace(update=(jax.tree.map(lambda d: d / steps, sent.update), steps))

    def server_update(server, update, total, context):
        direction, steps = update
        step = jax.tree.map(lambda d: d * steps, direction)
        return base.server_update(server, step, total, context)

    return base._replace(client=base.client._replace(finish=finish), server_update=server_update)


def another_rate(loss_fn, local):
    return fs.fedavg(loss_fn, optax.sgd(RATE / 2), local)


def fedavg_reference(params, ids, examples, weights):
    """Two full-batch steps of each client, and their mean by weight."""
    w = np.append(params["w"], params["b"])
    ends = []
    for client in examples:
        x = np.concatenate([client["x"], np.ones((len(client["y"]), 1))], axis=1)
        v = w.copy()
        for _ in range(2):
            v = v - RATE * 2 * x.T @ (x @ v - client["y"]) / len(x)
        ends.append(v)
    w = weights @ np.array(ends) / weights.sum()
    return {"w": w[:-1], "b": w[-1]}


@pytest.mark.slow
def test_what_is_right_has_its_certificate(capsys):
    certificate = fs.testing.check_algorithm(
        fedprox,
        numbers={"mu": (0.0, 0.1, 1.0)},
        special_case=({"mu": 0.0}, fedavg),
    )
    told = capsys.readouterr().out
    assert told == "".join(f"fedprox: {line}\n" for line in certificate.lines)
    for law in (
        "same key, same bits; resumed == uninterrupted",
        "all_clients == w + (n_V / n) (selected - w)",
        "a sweep of mu is traced once",
        "with mu = 0 it is fedavg",
        "vmapped() == packed(1) == packed(4) == sharded(mesh, packed(2))",
        "Communication(down=20, up=20); a client keeps 0 bytes",
    ):
        assert law in told
    assert repr(certificate).startswith("Certificate of fedprox\n  a mask over all K")


@pytest.mark.parametrize(
    ("make", "more", "message"),
    [
        (
            product_of_averages,
            {},
            r"all_clients == w \+ .* does not hold. client 3 of 1 examples alone, with n_V / n",
        ),
        pytest.param(
            fedavg,
            {"reference": lambda params, *_: params},
            r"it is the reference does not hold. round 0, clients \[0, 1, 3, 4, 5\]",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            fedprox,
            {"special_case": ({"mu": 0.5}, fedavg)},
            "with mu = 0.5 it is fedavg does not hold. client 3 of 1 examples alone",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            fedprox,
            {"special_case": ({"mu": 0.0}, another_rate)},
            "with mu = 0 it is another_rate does not hold. client 3 of 1 examples alone",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_an_algorithm_that_breaks_a_law(make, more, message):
    with pytest.raises(ContractError, match=message):
        fs.testing.check_algorithm(make, **more, verbose=False)


@pytest.mark.slow
def test_a_reference_of_five_rounds():
    certificate = fs.testing.check_algorithm(fedavg, reference=fedavg_reference, verbose=False)
    assert "five rounds are the reference's, to 1e-05" in certificate.lines


ALGORITHMS = {  # of two exchanges, with client states, and with a probe
    "mime": lambda loss_fn, local, momentum=0.5: fs.mime(loss_fn, RATE, local, momentum),
    "apfl": lambda loss_fn, local: fs.apfl(loss_fn, RATE, local, 0.5, adaptive=True),
    "qfedavg": lambda loss_fn, local, q=1.0: fs.qfedavg(loss_fn, RATE, local, q),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", list(ALGORITHMS))
def test_the_papers_have_certificates(name):
    assert len(fs.testing.check_algorithm(ALGORITHMS[name], verbose=False).lines) >= 7


def counts_padding(cohort, client_weights, all_client_weights):
    """The denominator has those in padding, and the dropouts."""
    return client_weights, jnp.sum(client_weights)


def of_the_first(cohort, client_weights, all_client_weights):
    """The first slot counts, whoever is in it."""
    first = jnp.arange(len(client_weights)) == 0
    return jnp.where(first, 2.0, 1.0) * client_weights, None


@pytest.mark.slow
def test_rules():
    """A mean is certified; of what is no rule, the law that it breaks is told."""
    certificate = fs.testing.check_rule(
        fs.aggregation.selected,
        reference=lambda updates, weights, all_weights: weights @ updates / weights.sum(),
        verbose=False,
    )
    assert any("the update is the reference's" in line for line in certificate.lines)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["krum", "geometric_median", "bucketing"])
def test_rules_that_see_all_updates(name):
    """A few clients may be too few: such a round keeps the model."""
    rule, reference = {
        "krum": (
            fs.aggregation.krum(1),
            lambda d, n, all_n: numpy.multi_krum(d, 1, 1, np.arange(len(d))),
        ),
        "geometric_median": (
            fs.aggregation.geometric_median(4),
            lambda d, n, all_n: numpy.geometric_median(d, n, 4),
        ),
        "bucketing": (fs.aggregation.bucketing(fs.aggregation.krum(0), 2), None),
    }[name]
    fs.testing.check_rule(rule, reference=reference, verbose=False)


@pytest.mark.parametrize(
    ("rule", "reference", "message"),
    [
        (counts_padding, None, "a mask over all K .*does not hold. client 0 of 1 examples"),
        pytest.param(
            of_the_first,
            None,
            "the order of a cohort .*does not hold. two clients",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            fs.aggregation.uniform,
            lambda updates, weights, all_weights: weights @ updates / weights.sum(),
            "the update is the reference's does not hold. two clients, of clients",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_rule_that_breaks_a_law(rule, reference, message):
    with pytest.raises(ContractError, match=message):
        fs.testing.check_rule(rule, reference=reference, verbose=False)


def counts_twice(engine, client_states, tasks, options):
    """A strategy that adds up every update twice."""
    executed = fs.execution.vmapped()(engine, client_states, tasks, options)
    doubled = jax.tree.map(lambda x: 2 * x, executed.update)
    return executed._replace(update=doubled)


def test_a_strategy_that_breaks_a_law():
    with pytest.raises(ContractError, match=r"FedAvg, shuffled blocks == vmapped\(\) does not"):
        fs.testing.check_strategy(counts_twice, verbose=False)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", [fs.execution.packed(3)])
def test_strategies(strategy):
    assert len(fs.testing.check_strategy(strategy, verbose=False).lines) == 7


def sampler_of(change):
    """Three of eight, evenly, with a change."""

    def draw(key, data):
        cohort = fs.sampling.uniform(3).sample(key, 0, data)
        return change(cohort, key)

    return fs.sampling.custom(3, draw)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda cohort, key: cohort._replace(inclusion=cohort.inclusion * 1.2),
            r"a client is picked as often .*client 0, 1024 rounds: [0-9]+ times, and .* 460.8",
        ),
        (
            lambda cohort, key: cohort._replace(client_ids=jnp.zeros(3, jnp.int32)),
            "no client twice does not hold. round 0",
        ),
        (
            lambda cohort, key: cohort._replace(client_ids=jnp.arange(3, dtype=jnp.int32) + 6),
            r"ids in \[0, 8\) does not hold. round 0",
        ),
        (
            lambda cohort, key: cohort._replace(
                client_ids=jnp.arange(3, dtype=jnp.int32), inclusion=None
            ),
            "rounds differ does not hold",
        ),
    ],
)
def test_a_sampler_that_breaks_a_law(change, message):
    with pytest.raises(ContractError, match=message):
        fs.testing.check_sampler(sampler_of(change), rounds=1024, verbose=False)


@pytest.mark.parametrize(
    "sampler",
    [
        fs.sampling.bernoulli(0.3),
        fs.sampling.weighted(3),
        fs.sampling.with_replacement(3),
        fs.sampling.everyone(),
    ],
)
def test_samplers(sampler):
    assert len(fs.testing.check_sampler(sampler, rounds=1024, verbose=False).lines) == 3
