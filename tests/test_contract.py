"""The one table: algorithm x rule x strategy x local training x treatment of odd updates.

Six cells of each algorithm hold every pair of levels of every two factors. A
cell compiles one round and drives it through every kind of cohort, beside the NumPy
reference.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from tests.conftest import MESH, SIZES, federation, flat, linear_loss, several_models, zeros
from tests.helpers import papers
from tests.helpers.reference import Server

LR, MU, SERVER_LR, K = 0.02, 0.3, 0.7, len(SIZES)
MOMENTUM, Q, ALPHA, EPS, RHO, LAMBDA_LR = 0.5, 1.5, 0.8, 0.01, 0.4, 0.3
ADAPTIVE = {"server_lr": 0.1, "b1": 0.6, "b2": 0.9, "tau": 0.1}
ALGORITHMS = {
    "fedavg": lambda local: fs.fedavg(linear_loss, optax.sgd(LR), local),
    "fedsgd": lambda local: fs.fedsgd(linear_loss, optax.sgd(LR)),
    "fedprox": lambda local: fs.fedprox(linear_loss, optax.sgd(LR), local, mu=MU),
    "scaffold": lambda local: fs.scaffold(linear_loss, LR, local, SERVER_LR),
    "fednova": lambda local: fs.fednova(linear_loss, LR, local, MOMENTUM, MU, SERVER_LR),
    "qfedavg": lambda local: fs.qfedavg(linear_loss, LR, local, Q),
    "ifca": lambda local: fs.ifca(linear_loss, optax.sgd(LR), local, num_models=2),
    "scaffold_1": lambda local: fs.scaffold(linear_loss, LR, local, SERVER_LR, option=1),
    "fedavgm": lambda local: fs.fedavgm(linear_loss, optax.sgd(LR), local, SERVER_LR, MOMENTUM),
    "fedadam": lambda local: fs.fedadam(linear_loss, optax.sgd(LR), local, **ADAPTIVE),
    "feddyn": lambda local: fs.feddyn(linear_loss, optax.sgd(LR), local, alpha=ALPHA),
    "fedexp": lambda local: fs.fedexp(linear_loss, optax.sgd(LR), local, eps=EPS),
    "mifa": lambda local: fs.mifa(linear_loss, optax.sgd(LR), local),
    "mimelite": lambda local: fs.mimelite(linear_loss, LR, local, MOMENTUM),
    "fedsam": lambda local: fs.fedsam(linear_loss, optax.sgd(LR), local, rho=RHO),
    "afl": lambda local: fs.afl(linear_loss, LR, local, LAMBDA_LR),
}
# NumPy's of those that `reference` has not.
PAPERS = {
    "fedavgm": (papers.FedAvgM, {"server_lr": SERVER_LR, "momentum": MOMENTUM}),
    "fedadam": (papers.Adaptive, {"kind": "adam", **ADAPTIVE}),
    "feddyn": (papers.FedDyn, {"alpha": ALPHA}),
    "fedexp": (papers.FedExP, {"eps": EPS}),
    "mifa": (papers.Mifa, {}),
    "mimelite": (papers.MimeLite, {"momentum": MOMENTUM}),
    "fedsam": (papers.FedSam, {"rho": RHO}),
    "afl": (papers.Afl, {"lambda_lr": LAMBDA_LR}),
}
# Quick in `algorithms/`, beside NumPy, under all rules or as the other option is.
QUICK_ELSEWHERE = frozenset((*PAPERS, "scaffold_1"))
RULES = ("selected", "all_clients", "uniform", "unbiased")
STRATEGIES = {
    "vmapped": fs.execution.vmapped(),
    "packed1": fs.execution.packed(1),
    "packed4": fs.execution.packed(4),
    "packed_m": fs.execution.packed(5),
    "sharded_vmapped": fs.execution.sharded(MESH, fs.execution.vmapped()),
    "sharded_packed2": fs.execution.sharded(MESH, fs.execution.packed(2)),
}
LOCALS = {
    "full": fs.LocalTraining(epochs=3, batch_size=None),
    "blocks_of_4": fs.LocalTraining(epochs=3, batch_size=4, shuffle=False),
    "each_block_in_turn": fs.LocalTraining(2, 4, shuffle=False, order="blocks"),
    "shuffled": fs.LocalTraining(epochs=2, batch_size=3, shuffle=True),
}
# What is left of the pairs: how odd updates are treated, and whose weights count.
TREATMENTS = ("keep", "drop", "keep_weighted", "drop_weighted")
WEIGHTS = (3.0, 1.0, 2.0, 0.5, 4.0, 1.5, 0.0, 2.5)

# slots: ids, mask, reports, work. Of five slots; the last round's ids repeat in padding.
COHORTS = {
    "plain": ([1, 4, 5, 7, 3], [1, 1, 1, 1, 1], [1, 1, 1, 1, 1], [1, 1, 1, 1, 1]),
    "permuted": ([5, 3, 7, 1, 4], [1, 1, 1, 1, 1], [1, 1, 1, 1, 1], [1, 1, 1, 1, 1]),
    "padded": ([0, 5, 5, 1, 0], [1, 0, 1, 1, 0], [1, 1, 1, 1, 1], [1, 1, 1, 1, 1]),
    "no_examples": ([2, 6, 1, 3, 0], [1, 1, 1, 1, 1], [1, 1, 1, 1, 1], [1, 1, 1, 1, 1]),
    "dropouts": ([7, 1, 0, 4, 5], [1, 1, 1, 1, 0], [0, 1, 1, 0, 1], [1, 1, 1, 1, 1]),
    "stragglers": ([5, 7, 1, 4, 0], [1, 1, 1, 1, 1], [1, 1, 1, 1, 0], [0.5, 0.34, 1, 0, 0.9]),
    "empty": ([0, 1, 2, 3, 4], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1], [1, 1, 1, 1, 1]),
    "all_dropped": ([0, 1, 2, 3, 4], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]),
    "only_without_examples": ([2, 1, 2, 3, 4], [1, 0, 0, 0, 0], [1] * 5, [1] * 5),
}


def cells():
    """An orthogonal array of strength 2: 16 rows, 5 factors of 4 levels, over GF(4).

    The rows of two strategies are there again for two more, and those of four algorithms for the
    others. Because a cell compiles, one row of each of the four is slow, two of the others', and
    all but one of those that are quick elsewhere, one of blocks that are not shuffled.
    """
    times = {1: (0, 1, 2, 3), 2: (0, 2, 3, 1), 3: (0, 3, 1, 2)}
    for number, algorithm in enumerate(ALGORITHMS):
        a = number % 4
        for b in range(4):
            for strategy in (a ^ b, 4 + (a ^ b)):
                if strategy < len(STRATEGIES):
                    is_slow = strategy >= 4 or b == 3 or (number >= 4 and b == 2)
                    if algorithm in QUICK_ELSEWHERE:
                        is_slow = strategy >= 4 or b != (0 if a == 1 else 1)
                    yield pytest.param(
                        algorithm,
                        RULES[b],
                        tuple(STRATEGIES)[strategy],
                        tuple(LOCALS)[a ^ times[2][b]],
                        TREATMENTS[a ^ times[3][b]],
                        marks=pytest.mark.slow if is_slow else (),
                    )


def make_cohort(name, seed):
    ids, mask, reports, work = COHORTS[name]
    rng = np.random.default_rng(seed)
    return fs.Cohort(
        client_ids=jnp.asarray(ids, jnp.int32),
        mask=jnp.asarray(mask, bool),
        reports=jnp.asarray(reports, bool),
        inclusion=jnp.asarray(rng.uniform(0.3, 1, 5), jnp.float32),
        work=jnp.asarray(work, jnp.float32),
    )


def test_cells_cover_every_pair():
    rows = [cell.values for cell in cells()]
    levels = [len(x) for x in (ALGORITHMS, RULES, STRATEGIES, LOCALS, TREATMENTS)]
    for i in range(5):
        for j in range(i):
            assert len({(row[i], row[j]) for row in rows}) == levels[i] * levels[j]


@pytest.mark.parametrize(("algorithm", "rule", "strategy", "local", "treatment"), list(cells()))
def test_contract(clients, algorithm, rule, strategy, local, treatment):
    nonfinite, _, weighted = treatment.partition("_")
    weights = WEIGHTS if weighted else SIZES
    data = federation(clients, weights)
    training = LOCALS[local]
    made = ALGORITHMS[algorithm](training)
    if algorithm == "mifa" and rule not in ("selected", "uniform"):
        with pytest.raises(ValueError, match="aggregation must be a mean over the clients"):
            fs.make_round(made, getattr(fs.aggregation, rule), STRATEGIES[strategy])
        return
    traces = []

    def build(execution):
        round_fn = fs.make_round(made, getattr(fs.aggregation, rule), execution, nonfinite)

        def counted(key, state, data, cohort):
            traces.append(1)
            return round_fn(key, state, data, cohort)

        return jax.jit(counted)

    round_fn = build(STRATEGIES[strategy])
    key = jax.random.key(3)
    params = several_models() if algorithm == "ifca" else zeros()
    state = fs.init(made, params, data)
    if "sharded" in strategy:  # else a second trace follows once the state is on the mesh
        data, state = fs.execution.replicate((data, state), MESH)
    # A permutation of the examples is not the reference's business: another strategy is
    # the oracle there, and the reference everywhere else.
    shuffled = training.shuffle and training.batch_size is not None and algorithm != "fedsgd"
    other = fs.execution.packed(2) if "vmapped" in strategy else fs.execution.vmapped()
    oracle = build(other) if shuffled else None
    oracle_state = state
    if algorithm in PAPERS:
        paper, numbers = PAPERS[algorithm]
        reference = paper(clients, weights, 5, LR, **{"server_lr": 1.0, **numbers})
    else:
        reference = Server(
            algorithm,
            clients,
            weights,
            5,
            LR,
            SERVER_LR if algorithm in ("scaffold", "scaffold_1", "fednova") else 1.0,
            MU,
            momentum=MOMENTUM,
            q=Q,
            start=flat(params),
        )

    for seed, name in enumerate(COHORTS):
        cohort = make_cohort(name, seed)
        before = state
        state, metrics = round_fn(key, state, data, cohort)
        if oracle is not None:
            oracle_state, _ = oracle(key, oracle_state, data, cohort)
            expected, tolerance = flat(oracle_state.params), 2e-6
            reports = [0 if x == 0 else 1 for x in COHORTS[name][3]]
        else:
            slots = reference.round(
                rule,
                *(np.asarray(x) for x in cohort[:5]),
                training.epochs,
                training.batch_size,
                training.order,
            )
            expected, tolerance = reference.w, 1e-5
            reports = None
        np.testing.assert_allclose(flat(state.params), expected, atol=tolerance, err_msg=name)
        assert int(state.round) == seed + 1
        assert int(metrics.nonfinite) == 0
        if reports is None:
            assert int(metrics.reporting) == len(slots), name
            assert int(metrics.senders) == len(slots), name
            assert bool(metrics.empty) == (not slots), name
        if name in ("empty", "all_dropped", "only_without_examples"):
            assert bool(metrics.empty)
            # MIFA's clients replay their last updates, so that the server moves, as NumPy's did.
            kept = [(x.clients, () if made.acts_when_empty else x.server) for x in (before, state)]
            for old, new in zip(*map(jax.tree.leaves, kept), strict=True):
                np.testing.assert_array_equal(old, new)
        given = len({i for i, m in zip(*COHORTS[name][:2], strict=True) if m})
        assert int(metrics.receivers) == (K if rule == "all_clients" else given)
        if algorithm.startswith("scaffold"):
            p = np.full(K, 1 / K) if rule == "uniform" else np.asarray(weights) / np.sum(weights)
            for c, c_k in zip(
                jax.tree.leaves(state.server.control), jax.tree.leaves(state.clients), strict=True
            ):
                np.testing.assert_allclose(c, np.tensordot(p, np.asarray(c_k), 1), atol=2e-5)
            if oracle is None:
                got = np.concatenate(
                    [np.asarray(state.clients["w"]), np.asarray(state.clients["b"])[:, None]], 1
                )
                np.testing.assert_allclose(got, reference.c_k, atol=2e-4)
    assert len(traces) == (2 if oracle is not None else 1)

    # The same seed gives the same bits; the order of the cohort changes only rounding.
    again, _ = round_fn(key, before, data, cohort)
    same, _ = round_fn(key, before, data, cohort)
    np.testing.assert_array_equal(flat(again.params), flat(same.params))
    start = fs.init(made, params, data)
    for name in ("plain", "stragglers"):
        cohort = make_cohort(name, 0)
        one, _ = round_fn(key, start, data, cohort)
        two, _ = round_fn(key, start, data, jax.tree.map(lambda x: x[::-1], cohort))
        np.testing.assert_allclose(flat(one.params), flat(two.params), atol=1e-6)
        assert not np.array_equal(flat(one.params), flat(start.params))
