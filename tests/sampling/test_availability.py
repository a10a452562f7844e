"""Who is available, and who is drawn among them: traces by hand, and inclusion counted."""

from math import comb

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from fedjax_sim.sampling import traces
from tests.conftest import SIZES, linear_loss, zeros
from tests.sampling.test_sampling import SAMPLERS

K, DRAWS = len(SIZES), 20_000
KEY = jax.random.key(5)


def drawn(sampler, data, rounds=DRAWS):
    cohorts = jax.jit(jax.vmap(lambda t: sampler.sample(KEY, t, data)))(jnp.arange(rounds))
    return np.asarray(cohorts.client_ids), np.asarray(cohorts.mask), cohorts.inclusion


def rows(trace, data, rounds):
    return np.array([np.asarray(trace.is_available(KEY, t, data)) for t in range(rounds)])


def test_traces_by_hand(data):
    clients = np.arange(K)
    assert rows(traces.always(), data, 2).all()
    for t, row in enumerate(rows(traces.periodic(4, 0.5), data, 9)):
        np.testing.assert_array_equal(row, (t - clients) % 4 < 2)
    labels = [0, 1, 2, 0, 1, 2, 0, 0]
    for t, row in enumerate(rows(traces.by_label(labels, 6, 1 / 3), data, 13)):
        # Of three labels and six rounds, label c comes in the rounds 2 c and 2 c + 1.
        np.testing.assert_array_equal(row, [t % 6 in (2 * c, 2 * c + 1) for c in labels])
    recorded = np.random.default_rng(0).random((3, K)) < 0.5
    np.testing.assert_array_equal(
        rows(traces.recorded(recorded), data, 7), recorded[[0, 1, 2] * 2 + [0]]
    )


def test_a_bernoulli_trace_is_available_as_often_as_it_says(data):
    draw = jax.jit(jax.vmap(lambda t: traces.bernoulli(0.3).is_available(KEY, t, data)))
    several = np.asarray(draw(jnp.arange(DRAWS)))
    np.testing.assert_allclose(several.mean(0), 0.3, atol=5 * np.sqrt(0.21 / DRAWS))
    correlation = np.corrcoef(several.T) - np.eye(K)
    assert np.abs(correlation).max() < 5 / np.sqrt(DRAWS)


def test_a_trace_in_a_file(data, tmp_path):
    recorded = np.random.default_rng(1).random((3, K)) < 0.5
    np.save(tmp_path / "trace.npy", recorded)
    trace = traces.from_file(tmp_path / "trace.npy")
    np.testing.assert_array_equal(rows(trace, data, 3), recorded)
    (tmp_path / "trace.npy").write_text("no array")
    with pytest.raises(ValueError, match=r"availability_file .*trace\.npy cannot be read"):
        traces.from_file(tmp_path / "trace.npy")


@pytest.mark.parametrize("name", SAMPLERS)
def test_only_the_available_are_drawn(data, name):
    """Row t of the trace has t clients, chosen anew; uniform and weighted take all there are."""
    rng = np.random.default_rng(2)
    recorded = np.zeros((9 * 40, K), bool)
    for t, row in enumerate(recorded):
        row[rng.choice(K, t % 9, replace=False)] = True
    ids, mask, inclusion = drawn(
        fs.sampling.available(SAMPLERS[name], recorded), data, len(recorded)
    )
    assert inclusion is None
    has_weight = np.array(SIZES) > 0
    for t, row in enumerate(recorded):
        picked = ids[t][mask[t]]
        assert row[picked].all()
        if name == "everyone":
            assert sorted(picked) == np.flatnonzero(row).tolist()
        elif name in ("uniform", "weighted"):
            there = row if name == "uniform" else row & has_weight
            assert len(picked) == len(set(picked)) == min(3, there.sum())
        elif name == "with_replacement":
            assert len(picked) == (3 if (row & has_weight).any() else 0)


@pytest.mark.parametrize("name", ["uniform", "bernoulli", "everyone"])
def test_inclusion_under_a_bernoulli_trace_is_counted(data, name):
    sampler = fs.sampling.available(SAMPLERS[name], traces.bernoulli(0.35))
    ids, mask, inclusion = drawn(sampler, data)
    at_most_3 = sum(min(3, a) * comb(K, a) * 0.35**a * 0.65 ** (K - a) for a in range(K + 1))
    expected = {"uniform": at_most_3 / K, "bernoulli": 0.4 * 0.35, "everyone": 0.35}[name]
    np.testing.assert_allclose(np.asarray(inclusion), expected, rtol=1e-5)
    counts = np.bincount(ids[mask], minlength=K)
    np.testing.assert_allclose(counts / DRAWS, expected, atol=5 * np.sqrt(0.25 / DRAWS))


def test_who_is_always_available_is_drawn_as_without_a_trace(data):
    sampler = SAMPLERS["uniform"]
    assert fs.sampling.available(sampler, traces.always()) is sampler
    all_there = fs.sampling.available(sampler, np.ones((1, K), bool))
    for round in range(3):
        one, other = (x.sample(KEY, round, data) for x in (sampler, all_there))
        np.testing.assert_array_equal(one.client_ids, other.client_ids)
        assert other.mask.all()


def test_wrappers_compose(data):
    first, second = np.eye(2, K, dtype=bool), np.ones((1, K), bool)
    first[:, 4] = True  # row 0 has clients 0 and 4, row 1 has 1 and 4
    for sampler in (
        fs.sampling.deadline(
            fs.sampling.available(fs.sampling.available(SAMPLERS["uniform"], first), second), 3.0
        ),
        fs.sampling.available(fs.sampling.deadline(SAMPLERS["uniform"], 3.0), first),
    ):
        cohort = sampler.sample(KEY, 1, data)
        assert sorted(np.asarray(cohort.client_ids)[np.asarray(cohort.mask)]) == [1, 4]
        assert cohort.deadline.tolist() == [3.0] * 3
        assert cohort.partial is None
        assert sampler.size == 3
    partial = fs.sampling.deadline(SAMPLERS["everyone"], 3.0, late="partial")
    assert partial.sample(KEY, 0, data).partial.tolist() == [True] * K


def test_an_accountant_has_no_event_of_who_is_not_always_there():
    poisson = fs.sampling.bernoulli(0.1)
    law = fs.sampling.available(poisson, traces.periodic(4)).law
    assert "available" in law.why
    assert fs.sampling.deadline(poisson, 3.0).law == poisson.law
    with pytest.raises(ValueError, match="available"):
        fs.privacy.budget(
            fs.sampling.available(poisson, traces.bernoulli(0.5)), 1.0, 10, 1e-5, num_clients=100
        )


def test_the_unbiased_rule_refuses_a_trace_with_the_reason(data):
    algorithm = fs.fedavg(linear_loss, optax.sgd(0.1), fs.LocalTraining())
    round_fn = fs.make_round(algorithm, fs.aggregation.unbiased)
    state = fs.init(algorithm, zeros(), data)
    cohort = fs.sampling.available(SAMPLERS["uniform"], traces.periodic(4)).sample(KEY, 0, data)
    with pytest.raises(ValueError, match=r"nor of clients that are not always available"):
        round_fn(KEY, state, data, cohort)


def test_majority_labels():
    data = fs.FederatedData.from_clients(
        [{"y": np.array(y, np.int32)} for y in ([3, 1, 3], [2, 0], [], [1])]
    )
    assert traces.majority_labels(data).tolist() == [3, 0, 0, 1]
    with pytest.raises(ValueError, match=r"data must have labels.*called 'label'"):
        traces.majority_labels(data, "label")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (
            lambda s, data: fs.sampling.available(s, np.ones((2, 3), bool)),
            r"\[2, 8\], of K = 8.*3\]",
        ),
        (lambda s, data: fs.sampling.available(s, np.ones(8, bool)), r"booleans of shape \[T, K\]"),
        (lambda s, data: fs.sampling.available(s, np.ones((2, 8))), r"booleans .*got float64"),
        (
            lambda s, data: fs.sampling.available(s, traces.periodic),
            r"trace must be .*got periodic",
        ),
        (lambda s, data: fs.sampling.available(s, 0.5), r"trace must be one of .*got 0\.5"),
        (
            lambda s, data: fs.sampling.available(fs.sampling.uniform, 1),
            r"sampler must .*got uniform",
        ),
        (
            lambda s, data: fs.sampling.available(s, traces.by_label([0, 1])),
            r"labels must have .*\[8\]",
        ),
        (lambda s, data: traces.by_label([0.5]), r"labels must be integers of shape \(K,\)"),
        (lambda s, data: traces.by_label([-1]), r"labels must be at least 0; got -1"),
        (lambda s, data: traces.periodic(0), r"period must be a whole number, at least 1"),
        (lambda s, data: traces.periodic(4, 0.1), r"share must be half a round.* 0\.125; got 0\.1"),
        (lambda s, data: traces.bernoulli(0.0), r"share must be finite and in \(0, 1\]; got 0\.0"),
        (lambda s, data: fs.sampling.deadline(s, 0.0), r"seconds must be finite and positive"),
        (
            lambda s, data: fs.sampling.deadline(s, 3.0, late="wait"),
            r'late must be "drop" or "partial"',
        ),
        (
            lambda s, data: fs.sampling.deadline("uniform", 3.0),
            r"sampler must be one of fs\.sampling",
        ),
    ],
)
def test_what_is_wrong_is_refused_by_name(data, make, says):
    with pytest.raises(ValueError, match=says):
        make(SAMPLERS["uniform"], data).sample(KEY, 0, data)
