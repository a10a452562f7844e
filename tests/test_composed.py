"""Composed cells: algorithm x compressor x privacy x rule x attack x delay.

Every pair of levels of two factors is in a cell, which every strategy computes alike, or is refused
when it is built. What a level is on its own, beside NumPy, is tested in its room.
"""

from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from tests.aggregation import references as numpy
from tests.conftest import MESH, SIZES, flat, linear_loss, slow_after, zeros
from tests.helpers.reference import Server, blocks

LR, MU, LOCAL = 0.02, 0.1, fs.LocalTraining(2, 4, shuffle=False)
KEY, K = jax.random.key(0), len(SIZES)
ALGORITHMS = {
    "fedavg": fs.fedavg(linear_loss, optax.sgd(LR), LOCAL),
    "scaffold": fs.scaffold(linear_loss, LR, LOCAL),
    "fedprox": fs.fedprox(linear_loss, optax.sgd(LR), LOCAL, mu=MU),
}
TOP_K, FOUR_BITS = fs.compression.top_k(0.5), fs.compression.quantise(4)
RULES = {
    "selected": fs.aggregation.selected,
    "unbiased": fs.aggregation.unbiased,
    "median": fs.aggregation.median(),
    "krum": fs.aggregation.krum(1),
}
ATTACKS = {"none": None, "alie": fs.attacks.alie(1.5), "sign_flip": fs.attacks.sign_flip(2.0)}
FACTORS = {
    "algorithm": tuple(ALGORITHMS),
    "sent": ("whole", "top_k fed back", "4 bits"),
    "privacy": ("none", "local", "central"),
    "rule": tuple(RULES),
    "attack": tuple(ATTACKS),
    "delay": ("none", "fedbuff"),
}
# Chosen one after another, each for the most pairs that none before it has.
CELLS = (
    ("fedprox", "top_k fed back", "none", "krum", "alie", "none"),
    ("fedavg", "top_k fed back", "central", "unbiased", "sign_flip", "none"),
    ("fedavg", "4 bits", "local", "krum", "none", "fedbuff"),
    ("scaffold", "whole", "none", "selected", "none", "none"),
    ("fedprox", "whole", "local", "median", "sign_flip", "none"),
    ("fedavg", "top_k fed back", "none", "median", "none", "fedbuff"),
    ("scaffold", "4 bits", "none", "unbiased", "alie", "none"),
    ("fedavg", "whole", "local", "selected", "alie", "none"),
    ("fedprox", "whole", "central", "unbiased", "none", "none"),
    ("fedprox", "4 bits", "none", "selected", "sign_flip", "none"),
    ("scaffold", "top_k fed back", "none", "selected", "none", "fedbuff"),
    ("fedprox", "whole", "none", "krum", "none", "fedbuff"),
    ("fedavg", "top_k fed back", "local", "unbiased", "none", "none"),
    ("fedavg", "4 bits", "none", "median", "alie", "none"),
    ("fedavg", "4 bits", "central", "unbiased", "alie", "none"),
    ("fedavg", "whole", "none", "krum", "sign_flip", "none"),
    ("scaffold", "whole", "none", "selected", "sign_flip", "none"),
)
MOVES_BY_MORE, BY_WEIGHT = "move by more than a client's clip", "divides by the weight of those"
REFUSED = {
    (("privacy", "central"), ("rule", "selected")): BY_WEIGHT,
    (("privacy", "central"), ("rule", "median")): MOVES_BY_MORE,
    (("privacy", "central"), ("rule", "krum")): MOVES_BY_MORE,
    (("algorithm", "scaffold"), ("rule", "median")): "c moves by a mean, which one client can",
    (("algorithm", "scaffold"), ("rule", "krum")): "c moves by a mean, which one client can",
    (("algorithm", "scaffold"), ("privacy", "local")): "sends a total beside it",
    (("algorithm", "scaffold"), ("privacy", "central")): "sends a total beside it",
    (("privacy", "central"), ("delay", "fedbuff")): "its budget is of cohorts drawn at random",
    (("rule", "unbiased"), ("delay", "fedbuff")): "who arrives first is decided by who is fast",
    (("attack", "alie"), ("delay", "fedbuff")): "attackers who know each other's updates",
    (("attack", "sign_flip"), ("delay", "fedbuff")): "attackers who know each other's updates",
}
MALICIOUS = np.isin(np.arange(K), [1, 5])
CLOCK = fs.clocks.given([1.0, 3.0, 1.0, 2.0, 0.5, 1.5, 4.0, 1.0])
STRATEGIES = {
    "vmapped": fs.execution.vmapped(),
    "packed": fs.execution.packed(2),
    "sharded": fs.execution.sharded(MESH, fs.execution.packed(1)),
}
INCLUSION = 0.75  # of each client, where a rule asks
# The ids of six clients, and who of them reports; one has no examples.
COHORTS = (
    ([1, 4, 5, 0, 7, 6], [1, 1, 1, 1, 1, 1]),
    ([5, 7, 1, 3, 0, 2], [1, 1, 1, 1, 1, 1]),
    ([4, 1, 6, 7, 5, 0], [1, 1, 1, 1, 1, 0]),
)


def algorithm_of(algorithm="fedavg", sent="whole", privacy="none", delay="none"):
    """Clients noise what they send before they encode it, and a server clips what it decodes."""
    composed = ALGORITHMS[algorithm]
    if privacy == "local":
        composed = fs.privacy.local(composed, 0.3, 0.1)
    if sent == "top_k fed back":
        composed = fs.compression.compressed(composed, TOP_K, error_feedback=True)
    if sent == "4 bits":
        composed = fs.compression.compressed(composed, FOUR_BITS)
    if privacy == "central":
        composed = fs.privacy.central(composed, 0.3, 0.1, 4.0)
    return fs.asynchronous.fedbuff(composed, 5, 6, CLOCK) if delay == "fedbuff" else composed


def round_of(composed, rule="selected", attack="none", strategy="vmapped"):
    malicious = None if attack == "none" else jnp.asarray(MALICIOUS)
    return fs.make_round(
        composed, RULES[rule], STRATEGIES[strategy], attack=ATTACKS[attack], malicious=malicious
    )


def cohorts():
    for ids, reports in COHORTS:
        yield fs.Cohort(
            jnp.array(ids, jnp.int32),
            reports=jnp.array(reports, bool),
            inclusion=jnp.full(6, INCLUSION),
        )


def trained(composed, data, strategy="vmapped", **levels):
    """The states after each round of one compiled function, and the last round's metrics."""
    traces = []
    round_fn = round_of(composed, strategy=strategy, **levels)

    def counted(*arguments):
        traces.append(1)
        return round_fn(*arguments)

    compiled, states = jax.jit(counted), []
    state = fs.init(composed, zeros(), data)
    if strategy == "sharded":
        data, state = fs.execution.replicate((data, state), MESH)
    for cohort in cohorts():
        state, metrics = compiled(KEY, state, data, cohort)
        states.append(state)
    assert len(traces) == 1
    again, _ = compiled(KEY, states[-2], data, cohort)
    np.testing.assert_array_equal(flat(again.params), flat(state.params))
    return states, metrics


def sent_by_numpy(reference, residuals, ids, reports):
    """Who reports, and the two largest of four entries of w, and b, of what each owes."""
    ids = np.array([k for k, comes in zip(ids, reports, strict=True) if comes and SIZES[k]])
    steps = [blocks(SIZES[k], LOCAL.epochs, LOCAL.batch_size, LOCAL.order) for k in ids]
    owed = reference.deltas(ids, steps) + residuals[ids]
    sent = owed.copy()
    for row in sent:
        row[np.argsort(np.abs(row[:4]))[:2]] = 0
    residuals[ids] = owed - sent
    return ids, sent


def pairs(levels):
    return {*combinations(levels.items(), 2)}


def test_every_pair_is_in_a_cell_or_refused():
    in_cells = set().union(*(pairs(dict(zip(FACTORS, cell, strict=True))) for cell in CELLS))
    whole = {
        ((a, x), (b, y))
        for a, b in combinations(FACTORS, 2)
        for x in FACTORS[a]
        for y in FACTORS[b]
    }
    assert in_cells | {*REFUSED} == whole
    assert not in_cells & {*REFUSED}


@pytest.mark.parametrize("pair", REFUSED, ids=lambda pair: " ".join(name for _, name in pair))
def test_what_cannot_compose_is_refused_when_built(pair):
    levels = dict(pair)
    rule = levels.pop("rule", "unbiased" if levels.get("privacy") == "central" else "selected")
    attack = levels.pop("attack", "none")
    with pytest.raises(ValueError, match=REFUSED[pair]):
        round_of(algorithm_of(**levels), rule, attack)


def test_what_is_held_back_is_of_clients_who_come_once(data):
    composed = algorithm_of(sent="top_k fed back")
    sampler = fs.sampling.with_replacement(3)
    experiment = fs.Experiment(composed, zeros(), data, sampler, 2, fs.aggregation.uniform)
    with pytest.raises(ValueError, match="replacement where the algorithm keeps client state"):
        experiment.run(KEY)


@pytest.mark.parametrize("cell", slow_after(2, CELLS), ids=" ".join)
def test_a_cell_is_the_same_by_every_strategy(data, cell):
    algorithm, sent, privacy, rule, attack, delay = cell
    composed = algorithm_of(algorithm, sent, privacy, delay)
    levels = {"rule": rule, "attack": attack}
    expected, metrics = trained(composed, data, **levels)
    for strategy in ("packed", "sharded"):
        states, its_metrics = trained(composed, data, strategy, **levels)
        for ours, theirs in zip(states, expected, strict=True):
            for x, y in zip(
                jax.tree.leaves((ours.params, ours.clients)),
                jax.tree.leaves((theirs.params, theirs.clients)),
                strict=True,
            ):
                np.testing.assert_allclose(x, y, rtol=1e-5, atol=2e-6)
        assert int(its_metrics.reporting) == int(metrics.reporting)
    assert np.abs(flat(expected[-1].params)).max() > 0.01
    plain, _ = trained(ALGORITHMS[algorithm], data)
    is_plain = (sent, privacy, rule, attack, delay) == ("whole", "none", "selected", "none", "none")
    differs = np.abs(flat(plain[-1].params) - flat(expected[-1].params)).max() > 1e-3
    assert differs != is_plain


def test_codecs_under_attack_and_krum_are_numpys(clients, data):
    """FedProx: what is held back, ALIE and Krum in float64, over rounds with a dropout."""
    composed = algorithm_of("fedprox", "top_k fed back")
    states, _ = trained(composed, data, rule="krum", attack="alie")
    reference = Server("fedprox", clients, np.ones(K), 5, LR, mu=MU)
    residuals = np.zeros((K, 5))
    for cohort, state in zip(COHORTS, states, strict=True):
        ids, sent = sent_by_numpy(reference, residuals, *cohort)
        bad = MALICIOUS[ids]
        sent[bad] = sent[bad].mean(axis=0) + 1.5 * sent[bad].std(axis=0)
        reference.w = reference.w + numpy.multi_krum(sent, 1, 1, ids)
        np.testing.assert_allclose(flat(state.params), reference.w, atol=1e-5)
    np.testing.assert_allclose(states[-1].clients.residual["w"], residuals[:, :4], atol=1e-5)


def test_a_private_server_of_codecs_clips_what_it_decodes(clients, data):
    """Without noise: each decoded update is cut to the clip, and divided by those expected."""
    inner = fs.compression.compressed(ALGORITHMS["fedavg"], TOP_K, error_feedback=True)
    composed = fs.privacy.central(inner, 0.3, 0.0, 4.0)
    states, _ = trained(composed, data, rule="unbiased")
    reference, residuals = Server("fedavg", clients, np.ones(K), 5, LR), np.zeros((K, 5))
    share = np.array(SIZES) / np.sum(SIZES) / INCLUSION
    for cohort, state in zip(COHORTS, states, strict=True):
        ids, sent = sent_by_numpy(reference, residuals, *cohort)
        lengths = np.linalg.norm(sent, axis=1)
        assert (lengths > 0.3).any()
        cut = sent * np.minimum(1, 0.3 / lengths)[:, None]
        weights = np.minimum(4 * share[ids], 1)
        reference.w = reference.w + weights @ cut / 4
        np.testing.assert_allclose(flat(state.params), reference.w, atol=1e-5)


@pytest.mark.slow
def test_a_buffer_of_all_is_the_synchronous_round_of_what_is_composed(data):
    """Of equal clients that are all in training: a codec and control variates are themselves."""
    composed = algorithm_of("scaffold", "top_k fed back")
    equal = fs.clocks.equal(K, step_seconds=0.0)
    buffered = fs.asynchronous.fedbuff(composed, 6, 6, equal)
    expected, _ = trained(composed, data)
    states, metrics = trained(buffered, data)
    np.testing.assert_allclose(flat(states[0].params), flat(expected[0].params), atol=1e-6)
    assert not float(metrics.staleness["max"])
