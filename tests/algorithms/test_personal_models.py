"""Models of clients' own beside NumPy loops in float64, and what each paper is at its limits.

The loops are written from the papers: every client's local steps, its own model, and the server's
mean, over five rounds of ragged clients in which some drop out.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from tests.conftest import MESH, SIZES, flat, linear_loss
from tests.helpers.reference import blocks, gradient
from tests.helpers.rules import RULES, any_rule

KEY, LR = jax.random.key(0), 0.02
LOCAL = fs.LocalTraining(2, 4, shuffle=False)
FULL = fs.LocalTraining(2, None)
MOMENTUM = 0.5
LAM, ALPHA, INNER_LR, INNER_STEPS, ETA, BETA = 0.7, 0.3, 0.03, 3, 0.02, 0.8
# Four slots a round, of which some do not report; client 2 has no examples, and 3 has one.
COHORTS = [(1, 4, 5, 7), (0, 1, 3, 5), (5, 7, 2, 0), (3, 1, 7, 4), (1, 5, 6, 7)]
REPORTS = [(1, 1, 1, 0), (1, 1, 1, 1), (1, 1, 1, 1), (1, 0, 1, 1), (1, 1, 1, 0)]
INCLUSION = (0.5, 0.25, 0.8, 0.5)
STRATEGIES = {
    "vmapped": fs.execution.vmapped(),
    "packed": fs.execution.packed(2),
    "sharded": fs.execution.sharded(MESH, fs.execution.packed(1)),
}


def hessian(x):
    """Of the mean squared error, whatever the model."""
    inputs = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    return 2 * inputs.T @ inputs / len(x)


class Ditto:
    """The own model is drawn to the model as received."""

    def start(self, w):
        return w

    def train(self, w, own, x, y, steps):
        copy, own = w.copy(), own.copy()
        for rows in steps:
            copy = copy - LR * gradient(copy, x[rows], y[rows])
            own = own - LR * (gradient(own, x[rows], y[rows]) + LAM * (own - w))
        return copy, own

    def uses(self, w, own, x, y):
        return own


class Apfl:
    """A mixture in which the own model has a share, learned in the first step of a round."""

    def __init__(self, adaptive):
        self.adaptive = adaptive

    def start(self, w):
        return w, ALPHA

    def train(self, w, kept, x, y, steps):
        (own, alpha), copy = kept, w.copy()
        for number, rows in enumerate(steps):
            g = gradient(alpha * own + (1 - alpha) * copy, x[rows], y[rows])
            new_own = own - LR * alpha * g
            if self.adaptive and number == 0:
                alpha = min(1.0, max(0.0, alpha - LR * g @ (own - copy)))
            copy, own = copy - LR * gradient(copy, x[rows], y[rows]), new_own
        return copy, (own, alpha)

    def uses(self, w, kept, x, y):
        own, alpha = kept
        return alpha * own + (1 - alpha) * w


class PFedMe:
    """The local model follows a personal one that steps towards the Moreau envelope's minimum."""

    def start(self, w):
        return w

    def train(self, w, own, x, y, steps):
        v = w.copy()
        for rows in steps:
            own = v.copy()
            for _ in range(INNER_STEPS):
                own = own - INNER_LR * (gradient(own, x[rows], y[rows]) + LAM * (own - v))
            v = v - ETA * LAM * (v - own)
        return w + BETA * (v - w), own

    def uses(self, w, own, x, y):
        return own


class PerFedAvg:
    """Steps down the loss behind a step; with the Hessian of a quadratic, which is its matrix."""

    def __init__(self, exact, full):
        self.exact, self.full = exact, full

    def start(self, w):
        return ()

    def train(self, w, kept, x, y, steps):
        v = w.copy()
        for rows in steps:
            inner, outer = (rows, rows) if self.full else (rows[::2], rows[1::2])
            outer = outer if len(outer) else rows
            behind = v - INNER_LR * gradient(v, x[inner], y[inner])
            step = gradient(behind, x[outer], y[outer])
            if self.exact:
                step = step - INNER_LR * hessian(x[inner]) @ step
            v = v - LR * step
        return v, kept

    def uses(self, w, kept, x, y):
        return w - INNER_LR * gradient(w, x, y) if len(x) else w


class InParts:
    """FedRep and FedBABU: b, the last number, is the client's head, and momentum begins anew."""

    def __init__(self, head_share):
        self.head_share = head_share

    def start(self, w):
        return w[-1]

    def train(self, w, head, x, y, steps):
        v, head_steps = np.append(w[:-1], head), int(self.head_share * len(steps))
        for part, rows_of_steps in enumerate((steps[:head_steps], steps[head_steps:])):
            moves = np.array([0.0] * 4 + [1.0]) if part == 0 else np.array([1.0] * 4 + [0.0])
            velocity = np.zeros(5)
            for rows in rows_of_steps:
                velocity = MOMENTUM * velocity + moves * gradient(v, x[rows], y[rows])
                v = v - LR * velocity
        return np.append(v[:-1], w[-1]), v[-1]

    def uses(self, w, head, x, y):
        return np.append(w[:-1], head)


CASES = {
    "fedrep": (fs.fedrep(linear_loss, optax.sgd(LR, 0.5), LOCAL, "b", 1), InParts(0.5)),
    "fedbabu": (fs.fedbabu(linear_loss, optax.sgd(LR, 0.5), LOCAL, "b"), InParts(0.0)),
    "ditto": (fs.ditto(linear_loss, optax.sgd(LR), LOCAL, LAM), Ditto()),
    "apfl": (fs.apfl(linear_loss, LR, LOCAL, ALPHA), Apfl(adaptive=False)),
    "apfl_adaptive": (fs.apfl(linear_loss, LR, LOCAL, ALPHA, True), Apfl(adaptive=True)),
    "pfedme": (
        fs.pfedme(linear_loss, LOCAL, LAM, INNER_LR, INNER_STEPS, ETA, BETA),
        PFedMe(),
    ),
    "perfedavg": (fs.perfedavg(linear_loss, INNER_LR, LR, LOCAL), PerFedAvg(True, False)),
    "perfedavg_full": (fs.perfedavg(linear_loss, INNER_LR, LR, FULL), PerFedAvg(True, True)),
    "perfedavg_first_order": (
        fs.perfedavg(linear_loss, INNER_LR, LR, LOCAL, hessian="first_order"),
        PerFedAvg(False, False),
    ),
}


def mean_of(rule, reporting, slots):
    """p over those that report, of sum 1, and the share by which the rule scales the step."""
    n = np.array([SIZES[k] for k in reporting], np.float64)
    a, denominator = {
        "selected": (n, n.sum()),
        "all_clients": (n, np.sum(SIZES)),
        "uniform": (np.ones(len(n)), len(n)),
        "unbiased": (n / np.sum(SIZES) / np.array([INCLUSION[i] for i in slots]), 1),
    }[rule]
    return a / a.sum(), a.sum() / denominator


def reference_rounds(reference, clients, rule, local, w):
    """The global model and every client's own, after five rounds."""
    kept = [reference.start(w) for _ in clients]
    for ids, reports in zip(COHORTS, REPORTS, strict=True):
        slots = [i for i, k in enumerate(ids) if reports[i] and SIZES[k]]
        p, share = mean_of(rule, [ids[i] for i in slots], slots)
        changes = []
        for k in (ids[i] for i in slots):
            x, y = clients[k]
            steps = blocks(len(y), local.epochs, local.batch_size, "epochs")
            trained, kept[k] = reference.train(w, kept[k], x, y, steps)
            changes.append(trained - w)
        w = w + share * p @ np.array(changes)
    own = [reference.uses(w, kept[k], *clients[k]) for k in range(len(clients))]
    return w, np.array(own)


def first_model():
    w = np.random.default_rng(1).normal(size=5).astype(np.float32) / 4
    return w, {"w": w[:-1], "b": w[-1]}


def rounds(algorithm, data, rule, strategy, params, count=5):
    state = fs.init(algorithm, params, data)
    round_fn = fs.make_round(algorithm, rule, strategy)
    for ids, reports in list(zip(COHORTS, REPORTS, strict=True))[:count]:
        cohort = fs.Cohort(
            jnp.array(ids), reports=jnp.array(reports, bool), inclusion=jnp.array(INCLUSION)
        )
        state, _ = round_fn(KEY, state, data, cohort)
    return state


@pytest.mark.parametrize(
    ("name", "strategy"),
    [
        pytest.param(name, strategy, marks=[pytest.mark.slow] if strategy != "vmapped" else [])
        for name in CASES
        for strategy in STRATEGIES
    ],
)
def test_against_numpy_under_all_rules(clients, data, name, strategy):
    algorithm, reference = CASES[name]
    w, params = first_model()
    # On a mesh the rule is one for a compilation: a traced choice of it crosses no shard_map.
    if strategy == "sharded":
        rules = {"selected": fs.aggregation.selected, "all_clients": fs.aggregation.all_clients}
        ends = {
            rule: jax.jit(lambda rule=rule: end(algorithm, data, rules[rule], strategy, params))()
            for rule in rules
        }
    else:
        any_end = jax.jit(lambda n: end(algorithm, data, any_rule(n), strategy, params))
        ends = {rule: any_end(number) for number, rule in enumerate(RULES)}
    for rule, (models, own) in ends.items():
        expected, expected_own = reference_rounds(
            reference, clients, rule, algorithm.local, w.astype(np.float64)
        )
        np.testing.assert_allclose(flat(models), expected, atol=1e-5, err_msg=rule)
        np.testing.assert_allclose(flat(own), expected_own, atol=1e-5, err_msg=rule)


def end(algorithm, data, rule, strategy, params):
    state = rounds(algorithm, data, rule, STRATEGIES[strategy], params)
    return state.params, fs.personal_params(algorithm, state, data)


@pytest.mark.parametrize("name", list(CASES))
def test_the_modes_differ_by_the_share(data, name):
    _, params = first_model()
    algorithm, _ = CASES[name]

    @jax.jit
    def after_one(number):
        return rounds(algorithm, data, any_rule(number), fs.execution.vmapped(), params, 1).params

    everyone, selected = (flat(after_one(RULES.index(r))) for r in ("all_clients", "selected"))
    share = sum(SIZES[k] for k in COHORTS[0][:3]) / sum(SIZES)
    w = flat(params)
    np.testing.assert_allclose(everyone, w + share * (selected - w), atol=1e-6)


def test_limits_are_fedavg_or_training_alone(data):
    """alpha = 0, or a meta step of 0, is FedAvg; lam = 0 and alpha = 1 train each client alone."""
    _, params = first_model()
    strategy = fs.execution.vmapped()

    @jax.jit
    def ends():
        fedavg = fs.fedavg(linear_loss, optax.sgd(LR), LOCAL)
        plain = rounds(fedavg, data, fs.aggregation.selected, strategy, params, 3).params
        full = fs.fedavg(linear_loss, optax.sgd(LR), FULL)
        plain_full = rounds(full, data, fs.aggregation.selected, strategy, params, 3).params
        own = {}
        for name, algorithm in {
            "nothing of its own": fs.apfl(linear_loss, LR, LOCAL, 0.0),
            "all its own": fs.apfl(linear_loss, LR, LOCAL, 1.0),
            "not drawn": fs.ditto(linear_loss, optax.sgd(LR), LOCAL, 0.0),
            "no step": fs.perfedavg(linear_loss, 0.0, LR, FULL),
        }.items():
            state = rounds(algorithm, data, fs.aggregation.selected, strategy, params, 3)
            own[name] = state.params, fs.personal_params(algorithm, state, data)
        return plain, plain_full, own

    plain, plain_full, own = ends()
    for name, (model, _) in own.items():
        expected = plain_full if name == "no step" else plain
        np.testing.assert_allclose(flat(model), flat(expected), atol=1e-6, err_msg=name)
    for row in flat(own["nothing of its own"][1]):
        np.testing.assert_allclose(row, flat(plain), atol=1e-6)
    alone = [flat(own[name][1]) for name in ("all its own", "not drawn")]
    np.testing.assert_allclose(*alone, atol=1e-6)
    assert np.ptp(alone[0][[0, 1, 3, 5]], axis=0).min() > 1e-3


def test_the_exact_hessian_is_the_derivative_of_the_objective():
    """A loss that is no quadratic: one full-batch step is beta times finite differences of F_k."""
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(6, 3)), rng.normal(size=6)

    def loss(w, batch, key):
        return jnp.tanh(batch["x"] @ w - batch["y"]) ** 2

    def objective(w):
        def mean(w):
            return np.mean(np.tanh(x @ w - y) ** 2)

        error = np.tanh(x @ w - y)
        slope = x.T @ (2 * error * (1 - error**2)) / len(y)
        return mean(w - 0.5 * slope)

    w = rng.normal(size=3)
    expected = [
        (objective(w + 1e-6 * unit) - objective(w - 1e-6 * unit)) / 2e-6 for unit in np.eye(3)
    ]
    data = fs.FederatedData.from_clients([{"x": x.astype(np.float32), "y": y.astype(np.float32)}])
    moved = {}
    for hessian in ("exact", "first_order"):
        algorithm = fs.perfedavg(loss, 0.5, 1.0, fs.LocalTraining(1, None), hessian)
        round_fn = fs.make_round(algorithm, execution=fs.execution.vmapped())
        state = fs.init(algorithm, w.astype(np.float32), data)
        after = jax.jit(round_fn)(KEY, state, data, fs.Cohort([0]))[0].params
        moved[hessian] = w - np.asarray(after)
    np.testing.assert_allclose(moved["exact"], expected, atol=2e-6)
    assert np.abs(moved["first_order"] - expected).max() > 2e-3


def test_a_sweep_of_their_numbers_compiles_once(data):
    """Every number is an argument of one compiled function, and gives what it gives as a number."""
    _, params = first_model()
    traces = []
    strategy = fs.execution.packed(2)

    @jax.jit
    def all_four(numbers):
        traces.append(1)
        lam, alpha, rate, inner_rate, eta, beta = numbers
        algorithms = (
            fs.ditto(linear_loss, optax.sgd(rate), LOCAL, lam),
            fs.apfl(linear_loss, rate, LOCAL, alpha, adaptive=True),
            fs.pfedme(linear_loss, LOCAL, lam, inner_rate, INNER_STEPS, eta, beta),
            fs.perfedavg(linear_loss, inner_rate, rate, LOCAL),
        )
        return [
            rounds(x, data, fs.aggregation.selected, strategy, params, 1).params for x in algorithms
        ]

    for numbers in ((LAM, ALPHA, LR, INNER_LR, ETA, BETA), (0.1, 0.9, 0.01, 0.02, 0.05, 0.5)):
        all_four(tuple(jnp.float32(x) for x in numbers))
    assert len(traces) == 1


@pytest.mark.parametrize(
    ("factory", "arguments", "wrong", "message"),
    [
        (
            fs.ditto,
            (optax.sgd(LR), LOCAL),
            {"lam": -1.0},
            "lam must be finite and at least 0; got -1.0",
        ),
        (
            fs.ditto,
            (optax.sgd(LR), LOCAL, 0.1),
            {"personal_optimizer": 0.1},
            "personal_optimizer must be an optax",
        ),
        (fs.apfl, (LR, LOCAL), {"alpha": 1.5}, r"alpha must be finite and in \[0, 1\]; got 1.5"),
        (fs.apfl, (0.0, LOCAL), {"alpha": 0.5}, "client_lr must be finite and positive; got 0.0"),
        (
            fs.pfedme,
            (LOCAL, LAM, INNER_LR),
            {"inner_steps": 0, "eta": ETA},
            "inner_steps must be a whole number, at least 1; got 0",
        ),
        (
            fs.pfedme,
            (LOCAL,),
            {"lam": 0.0, "inner_lr": 0.1, "inner_steps": 1, "eta": 0.1},
            "lam must be finite and positive; got 0.0",
        ),
        (
            fs.fedrep,
            (optax.sgd(LR), LOCAL, "b"),
            {"head_epochs": 2},
            "head_epochs must be less than epochs, so that some are left .*; got 2 of 2",
        ),
        (fs.perfedavg, (-0.1, LR, LOCAL), {}, "alpha must be finite and at least 0; got -0.1"),
        (fs.perfedavg, (0.1, 0.0, LOCAL), {}, "beta must be finite and positive; got 0.0"),
        (
            fs.perfedavg,
            (0.1, LR, LOCAL),
            {"hessian": "exakt"},
            "unknown hessian 'exakt'; did you mean 'exact'?",
        ),
    ],
)
def test_refusals(factory, arguments, wrong, message):
    with pytest.raises(ValueError, match=message):
        factory(linear_loss, *arguments, **wrong)
