"""Global models beside NumPy: one compiled round each, whose own numbers are its arguments."""

from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from tests.conftest import MESH, SIZES, flat, linear_loss, slow_after, zeros
from tests.helpers import papers
from tests.helpers.reference import Server
from tests.helpers.rules import RULES, any_rule

LR, LOCAL = 0.05, fs.LocalTraining(2, 4, shuffle=False)
MEANS = ("selected", "uniform")
STRATEGIES = {
    "vmapped": fs.execution.vmapped(),
    "packed2": fs.execution.packed(2),
    "packed1": fs.execution.packed(1),
    "sharded": fs.execution.sharded(MESH, fs.execution.packed(2)),
}
# Five rounds of four clients of 0 to 23 examples; the last of each drops out.
IDS = ((1, 4, 5, 7), (5, 0, 3, 1), (2, 7, 1, 5), (6, 4, 7, 0), (5, 1, 4, 3))
REPORTS, INCLUSION = (True, True, True, False), (0.5, 0.25, 0.8, 0.5)
POINTS = np.random.default_rng(7).normal(size=(6, 2)).astype(np.float32)  # without labels
SCALE = sum(SIZES[k] for k in IDS[0][:3]) / sum(SIZES)  # n_V / n of the first cohort
ADAPTIVE = {"server_lr": 0.1, "b1": 0.6, "b2": 0.9, "tau": 0.1}


class Problem(NamedTuple):
    """Ragged clients, a loss, a first model, and its vector in NumPy's order."""

    clients: Any
    loss_fn: Any
    params: Any
    vector: Any = flat


class Case(NamedTuple):
    """How an algorithm is made, what NumPy does, and where it is FedAvg.

    Attributes:
      factory: of the algorithm.
      reference: of NumPy's.
      numbers: its own, all traced.
      simpler: those with which it is FedAvg; None for none.
      rate: whether it takes client_lr and no optimizer.
      averaged: server_state -> what is linear in the rule's averages; None for the model.
      rules: that it can follow.
      problem: of `problems`.
    """

    factory: Any
    reference: Any
    numbers: dict
    simpler: dict | None = None
    rate: bool = False
    averaged: Any = None
    rules: tuple = RULES
    problem: str = "regression"


def adaptive(kind):
    numbers = {k: x for k, x in ADAPTIVE.items() if kind != "adagrad" or k != "b2"}
    return Case(
        getattr(fs, f"fed{kind}"),
        lambda *given, **own: papers.Adaptive(*given, kind=kind, **own),
        numbers,
        averaged=lambda server: server.optimizer.m,
    )


CASES = {
    "fedavgm": Case(
        fs.fedavgm,
        papers.FedAvgM,
        {"server_lr": 0.7, "momentum": 0.6},
        {"server_lr": 1.0, "momentum": 0.0},
        averaged=lambda server: server.optimizer,
    ),
    "fedadagrad": adaptive("adagrad"),
    "fedadam": adaptive("adam"),
    "fedyogi": adaptive("yogi"),
    "feddyn": Case(fs.feddyn, papers.FedDyn, {"alpha": 0.8}),
    "fedexp": Case(fs.fedexp, papers.FedExP, {"eps": 0.01}, {"eps": 1e9}),
    "mifa": Case(fs.mifa, papers.Mifa, {}, rules=MEANS),
    "mimelite": Case(fs.mimelite, papers.MimeLite, {"momentum": 0.6}, {"momentum": 0.0}, rate=True),
    "fedsam": Case(fs.fedsam, papers.FedSam, {"rho": 0.5}, {"rho": 0.0}),
    "fedlc": Case(fs.fedlc, papers.FedLC, {"tau": 0.7}, {"tau": 0.0}, problem="classes"),
    "moon": Case(
        lambda *given, **own: fs.moon(*given, **own, features=features),
        papers.Moon,
        {"mu": 0.8, "temperature": 0.4},
        {"mu": 0.0, "temperature": 0.4},
        problem="features",
    ),
    "feddf": Case(
        lambda *given, lr_server, **own: fs.feddf(
            *given, **own, unlabelled={"x": POINTS}, steps=3, lr=lr_server, batch_size=None
        ),
        lambda *given, **own: papers.FedDF(*given, **own, points=POINTS, steps=3),
        {"lr_server": 0.05},
        {"lr_server": 1e-9},
        problem="curved",
    ),
    "afl": Case(fs.afl, papers.Afl, {"lambda_lr": 0.3}, {"lambda_lr": 0.0}, rate=True),
}


def features(params, batch):
    return jnp.tanh(batch["x"] @ params["inner"])


def loss_of_features(params, batch, key):
    return (features(params, batch) @ params["outer"] - batch["y"]) ** 2


def ravelled(params):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(params)]).astype(np.float64)


@pytest.fixture(scope="module")
def problems(clients):
    """name -> Problem."""
    rng = np.random.default_rng(5)
    points = [rng.normal(size=(n, 2)) for n in SIZES]
    # Two of three classes a client, so that one is absent.
    labels = [(k + rng.integers(0, 2, n)) % 3 for k, n in enumerate(SIZES)]
    linear = {"bias": np.zeros(3, np.float32), "kernel": np.zeros((2, 3), np.float32)}
    start = {
        name: rng.normal(size=size).astype(np.float32)
        for name, size in (("inner", (2, 3)), ("outer", 3))
    }

    def outputs(w, x):
        return x @ w["kernel"] + w["bias"][None]

    classified = list(zip(points, labels, strict=True))
    # A mean of linear models says what they say on average, so that nothing is to be distilled.
    curved = fs.models.cross_entropy(lambda w, x: 3 * jnp.tanh(outputs(w, x)))
    values = [rng.normal(size=n) for n in SIZES]
    return {
        "regression": Problem(clients, linear_loss, zeros()),
        "classes": Problem(classified, fs.models.cross_entropy(outputs), linear, ravelled),
        "curved": Problem(classified, curved, linear, ravelled),
        "features": Problem(
            list(zip(points, values, strict=True)), loss_of_features, start, ravelled
        ),
    }


def make(case, numbers, loss_fn=linear_loss):
    own = {"client_lr": LR} if case.rate else {"client_optimizer": optax.sgd(LR)}
    return case.factory(loss_fn, local=LOCAL, **own, **numbers)


@pytest.mark.parametrize("strategy", slow_after(1, STRATEGIES))
@pytest.mark.parametrize("name", CASES)
def test_five_rounds_under_all_rules(problems, name, strategy):
    """Beside NumPy; its simpler self beside FedAvg; the identity of the modes; in one trace."""
    case, traces = CASES[name], []
    clients, loss_fn, params, vector = problems[case.problem]
    first = vector(params)
    data = fs.FederatedData.from_clients(
        [
            {"x": x.astype(np.float32), "y": y.astype(np.float32 if y.dtype == float else np.int32)}
            for x, y in clients
        ]
    )
    if strategy == "sharded":
        data = fs.execution.replicate(data, MESH)

    @jax.jit
    def step(numbers, rule, state, ids):
        traces.append(1)
        cohort = fs.Cohort(
            ids, reports=jnp.array(REPORTS), inclusion=jnp.array(INCLUSION, jnp.float32)
        )
        algorithm = make(case, numbers, loss_fn)
        round_fn = fs.make_round(algorithm, any_rule(rule, case.rules), STRATEGIES[strategy])
        return round_fn(jax.random.key(0), state, data, cohort)[0]

    def start(numbers):
        state = fs.init(make(case, numbers, loss_fn), params, data)
        return fs.execution.replicate(state, MESH) if strategy == "sharded" else state

    def rounds(numbers, rule, reference, atol=1e-5):
        state = start(numbers)
        for ids in IDS:
            reference.round(
                case.rules[rule], ids, [True] * 4, REPORTS, INCLUSION, np.ones(4), 2, 4, "epochs"
            )
            state = step(numbers, rule, state, jnp.array(ids))
            np.testing.assert_allclose(
                vector(state.params), reference.w, rtol=1e-5, atol=atol, err_msg=case.rules[rule]
            )
        return state

    for rule in range(len(case.rules)):
        own = {"server_lr": 1.0} | case.numbers
        after = rounds(
            case.numbers, rule, case.reference(clients, SIZES, len(first), LR, start=first, **own)
        )
        fedavg = Server("fedavg", clients, SIZES, len(first), LR, start=first)
        if case.problem != "regression":
            fedavg = case.reference(clients, SIZES, len(first), LR, start=first, **case.simpler)
        if case.simpler is not None and rule == 0:
            rounds(case.simpler, rule, fedavg, atol=2e-5)
            assert np.abs(vector(after.params) - fedavg.w).max() > 1e-3
    if case.rules == RULES:
        averaged = case.averaged or (lambda server: server.params)
        before, (selected, all_clients) = (
            averaged(after.server),
            (
                averaged(step(case.numbers, RULES.index(rule), after, jnp.array(IDS[0])).server)
                for rule in ("selected", "all_clients")
            ),
        )
        # Of a moving average what is not the round's own is the same under both.
        kept = 1.0
        if case.averaged is not None:
            kept = case.numbers.get("momentum", case.numbers.get("b1"))
        np.testing.assert_allclose(
            vector(all_clients) - kept * vector(before),
            SCALE * (vector(selected) - kept * vector(before)),
            atol=1e-5,
        )
    assert len(traces) == 1


def test_feddyn_keeps_its_sum_and_goes_to_the_optimum(clients, data):
    """h = sum_k p_k g_k, and many local steps of everyone end at the common optimum."""
    algorithm = fs.feddyn(linear_loss, optax.sgd(0.02), fs.LocalTraining(10, None), alpha=1.0)
    round_fn = fs.make_round(algorithm, execution=fs.execution.vmapped())
    start = fs.init(algorithm, zeros(), data)

    @jax.jit
    def after(state, sampler_size):
        cohort = fs.Cohort(jnp.arange(8), jnp.arange(8) < sampler_size)
        return jax.lax.fori_loop(
            0, 400, lambda _, s: round_fn(jax.random.key(0), s, data, cohort)[0], state
        )

    few, state = after(start, 4), after(start, 8)
    p = np.asarray(SIZES) / sum(SIZES)
    for h, g in zip(jax.tree.leaves(few.server.h), jax.tree.leaves(few.clients), strict=True):
        np.testing.assert_allclose(h, np.tensordot(p, np.asarray(g), 1), atol=1e-4)
    x, y = (np.concatenate([client[i] for client in clients]) for i in (0, 1))
    best = np.linalg.lstsq(np.column_stack([x, np.ones(len(x))]), y, rcond=None)[0]
    np.testing.assert_allclose(flat(state.params), best, atol=1e-3)


def test_what_is_sent(data):
    """Bytes beside FedAvg's 20 and 20; what FedDyn and MIFA have in two places is sent once."""
    expected = {
        "feddyn": (20, 24),
        "fedexp": (20, 28),
        "mifa": (20, 20),
        "mimelite": (40, 44),
        "afl": (24, 28),
        "fedsam": (20, 20),
        "fedavgm": (20, 20),
        "fedadam": (20, 20),
    }
    for name, (down, up) in expected.items():
        algorithm = make(CASES[name], CASES[name].numbers)
        assert fs.communication(algorithm, zeros(), data) == fs.Communication(down, up), name


def test_a_rule_that_an_algorithm_cannot_follow_is_refused_when_the_round_is_built(data):
    def fixed(cohort, weights, all_weights):
        return weights, jnp.sum(all_weights)

    def for_eight(cohort, weights, all_weights):
        assert len(all_weights) == 8, "K"
        return weights, jnp.sum(all_weights)

    mifa, afl = make(CASES["mifa"], {}), make(CASES["afl"], {"lambda_lr": 0.1})
    message = "aggregation must be a mean over .* because those not selected replay"
    for rule in (
        fs.aggregation.all_clients,
        fs.aggregation.unbiased,
        fs.aggregation.median(),
        fixed,
    ):
        with pytest.raises(ValueError, match=message):
            fs.make_round(mifa, rule)
    # A total is a mean, by which one client can move FedDyn's and SCAFFOLD's servers far.
    others = [fs.scaffold(linear_loss, LR, LOCAL, option=option) for option in (1, 2)]
    others += [make(CASES["feddyn"], {"alpha": 0.1}), fs.ifca(linear_loss, optax.sgd(LR), LOCAL, 2)]
    for algorithm in (afl, *others):
        with pytest.raises(ValueError, match=r"must be an average.*it combines all updates"):
            fs.make_round(algorithm, fs.aggregation.median())
    fs.make_round(afl, fs.aggregation.all_clients)
    # A rule that cannot answer for a few clients is asked by the round, before it compiles.
    round_fn = fs.make_round(mifa, for_eight)
    state = fs.init(mifa, zeros(), data)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(round_fn, jax.random.key(0), state, data, fs.Cohort(jnp.arange(3)))


def test_mifas_server_moves_by_its_memory_where_nobody_counts():
    """By hand: of values 1 and 3, weights 1 to 1, a step of rate 1/4 goes half of the way."""
    data = fs.FederatedData.from_clients([np.ones(1), np.full(1, 3.0)])
    algorithm = fs.mifa(lambda w, y, key: (w - y) ** 2, optax.sgd(0.25), fs.LocalTraining(1))
    round_fn = jax.jit(fs.make_round(algorithm, nonfinite="drop"))
    key, state = jax.random.key(0), fs.init(algorithm, 0.0, data)
    everyone = fs.Cohort(jnp.arange(2))
    state, _ = round_fn(key, state, data, everyone)
    assert float(state.params) == 1  # the mean of 1/2 and 3/2
    nobody = everyone._replace(mask=jnp.zeros(2, bool))
    dropouts = everyone._replace(reports=jnp.zeros(2, bool))
    broken = replace(data, examples=data.examples * jnp.nan)
    for examples, cohort in ((data, nobody), (data, dropouts), (broken, everyone)):
        before = float(state.params)
        state, metrics = round_fn(key, state, examples, cohort)
        assert bool(metrics.empty)
        assert float(state.params) == before + 1
        assert float(state.server.memory) == 1
        np.testing.assert_array_equal(state.clients, [0.5, 1.5])


def test_afl_weighs_the_worst_client_and_exponents_stay_finite():
    """Clients at 0 and at 1, of weights 9 to 1: the worst mixture is even."""
    data = fs.FederatedData.from_clients([np.zeros(9), np.ones(1)])
    everyone = fs.Cohort(jnp.arange(2))

    @jax.jit
    def after(lambda_lr, scale):
        algorithm = fs.afl(
            lambda w, y, key: scale * (w - y) ** 2, 0.02 / scale, fs.LocalTraining(1), lambda_lr
        )
        round_fn = fs.make_round(algorithm, execution=fs.execution.vmapped())
        state = fs.init(algorithm, 0.0, data)
        state = jax.lax.fori_loop(
            0, 3000, lambda _, s: round_fn(jax.random.key(0), s, data, everyone)[0], state
        )
        return state.params, state.clients

    assert float(after(0.0, 1.0)[0]) == pytest.approx(0.1, abs=1e-3)
    assert float(after(0.02, 1.0)[0]) == pytest.approx(0.5, abs=0.01)
    params, losses = after(1.0, 1e4)
    assert np.isfinite(params)
    assert losses.max() > 1e6


def test_moons_features_are_the_models_outputs_unless_others_are_given(problems, data):
    clients, loss_fn, params, vector = problems["classes"]
    classes = fs.FederatedData.from_clients(
        [{"x": x.astype(np.float32), "y": y.astype(np.int32)} for x, y in clients]
    )

    def after(**own):
        algorithm = fs.moon(loss_fn, optax.sgd(0.5), LOCAL, mu=5.0, **own)
        round_fn = fs.make_round(algorithm, execution=fs.execution.vmapped())
        state = fs.init(algorithm, params, classes)
        return round_fn(jax.random.key(0), state, classes, fs.Cohort(jnp.array([1, 5])))[0].params

    def logits(params, batch):
        return batch["x"] @ params["kernel"] + params["bias"][None]

    by_default, by_hand = jax.jit(lambda: (after(), after(features=logits)))()
    np.testing.assert_allclose(vector(by_default), vector(by_hand), atol=1e-6)
    with pytest.raises(ValueError, match="features must be given"):
        fs.moon(linear_loss, optax.sgd(0.1), LOCAL)
    scalar = fs.moon(linear_loss, optax.sgd(0.1), LOCAL, features=lambda w, batch: batch["y"])
    with pytest.raises(ValueError, match=r"features must return \[B, d\]; of 3 examples .*\[3\]"):
        fs.init(scalar, zeros(), data)
