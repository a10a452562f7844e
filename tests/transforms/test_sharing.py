"""A part of the model that stays with each client: beside NumPy, bytes by hand, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from fedjax_sim.transforms.sharing.shared_part import Shared
from tests.conftest import MESH, SIZES, federation, linear_loss, slow_after, zeros
from tests.helpers.reference import blocks, gradient, gradient_weights
from tests.helpers.rules import RULES, any_rule

LR, SERVER_LR, MU, MOMENTUM, Q, K = 0.03, 0.7, 0.4, 0.5, 1.5, len(SIZES)
LOCAL = fs.LocalTraining(2, 4, shuffle=False)
KEY = jax.random.key(2)
# Of [w, b] the first four are shared and the last is the client's own; or the other way round.
OWN = {"b": np.array([False] * 4 + [True]), "w": np.array([True] * 4 + [False])}
ALGORITHMS = {
    "fedavg": fs.fedavg(linear_loss, optax.sgd(LR), LOCAL),
    "scaffold": fs.scaffold(linear_loss, LR, LOCAL, SERVER_LR),
    "fednova": fs.fednova(linear_loss, LR, LOCAL, MOMENTUM, MU, SERVER_LR),
    "qfedavg": fs.qfedavg(linear_loss, LR, LOCAL, Q),
    "fedprox": fs.fedprox(linear_loss, optax.sgd(LR), LOCAL, mu=MU),
    "feddyn": fs.feddyn(linear_loss, optax.sgd(LR), LOCAL, alpha=MU),
}
# ids, whether each reports, its share of work
COHORTS = (
    ([1, 4, 5, 7, 3], [1, 1, 1, 1, 1], [1, 1, 1, 1, 1]),
    ([5, 2, 7, 0, 4], [1, 1, 0, 1, 1], [1, 1, 1, 0.5, 1]),
    ([7, 1, 0, 4, 5], [1, 1, 1, 0, 1], [1, 1, 0, 1, 1]),
    ([0, 1, 2, 3, 4], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]),
    ([3, 5, 6, 1, 7], [1, 1, 1, 1, 1], [1, 1, 1, 0.7, 1]),
)


class Reference:
    """A whole federation whose clients keep a part of [w, b], from the papers' equations.

    On the client's own part no algorithm corrects or normalises anything: there it is plain SGD
    (with FedNova's momentum and the pull to where the round began), kept as it ends.
    """

    def __init__(self, algorithm, clients, own):
        self.algorithm, self.clients, self.own = algorithm, clients, own
        self.w, self.v = np.zeros(5), np.zeros((K, 5))
        self.c, self.c_k = np.zeros(5), np.zeros((K, 5))

    def model(self, k):
        return np.where(self.own, self.v[k], self.w)

    def train(self, k, steps):
        x, y = self.clients[k]
        start = self.model(k)
        model, velocity = start.copy(), np.zeros(5)
        for rows in steps:
            g = gradient(model, x[rows], y[rows])
            if self.algorithm in ("fedprox", "feddyn"):
                g = g + MU * (model - start)
            if self.algorithm == "feddyn":
                g = g - np.where(self.own, 0, self.c_k[k])
            if self.algorithm == "scaffold":
                g = g + np.where(self.own, 0, self.c - self.c_k[k])
            if self.algorithm == "fednova":
                velocity = MOMENTUM * velocity + g
                g = velocity + MU * (model - start)
            model = model - LR * g
        return model

    def round(self, rule, ids, reports, work):
        trained, steps = {}, {}
        for slot, k in enumerate(ids):
            rows = blocks(SIZES[k], 2, 4, "epochs")
            rows = rows[: int(np.floor(work[slot] * len(rows)))]
            if reports[slot] and rows:
                trained[k], steps[k] = self.train(k, rows), len(rows)
        if not trained:
            return
        sizes = np.array(SIZES, float)
        who = list(trained)
        a = {
            "selected": sizes[who] / sizes[who].sum(),
            "all_clients": sizes[who] / sizes.sum(),
            "uniform": np.full(len(who), 1 / len(who)),
            "unbiased": sizes[who] / sizes.sum() / 0.6,
        }[rule]
        scale, p = a.sum(), a / a.sum()
        # Only what is shared moves the server, and only that is in any norm.
        deltas = np.array([np.where(self.own, 0, trained[k] - self.w) for k in who])
        step = scale * p @ deltas
        if self.algorithm == "fednova":
            norms = np.array(
                [np.abs(gradient_weights(steps[k], LR, MOMENTUM, MU)).sum() for k in who]
            )
            step = scale * (p @ norms) * (p @ (deltas / norms[:, None]))
        if self.algorithm == "qfedavg":
            losses = []
            for k in who:
                x, y = self.clients[k]
                model = self.model(k)
                losses.append(np.mean((x @ model[:4] + model[4] - y) ** 2))
            losses = np.array(losses)
            h = Q * losses ** (Q - 1) * (deltas**2).sum(axis=1) / LR**2 + losses**Q / LR
            step = scale * (p @ (losses[:, None] ** Q * deltas / LR)) / (p @ h)
        if self.algorithm == "scaffold":
            share = np.full(K, 1 / K) if rule == "uniform" else sizes / sizes.sum()
            change = np.zeros(5)
            for k, delta in zip(who, deltas, strict=True):
                renewed = np.where(self.own, 0, self.c_k[k] - self.c - delta / (steps[k] * LR))
                change += share[k] * (renewed - self.c_k[k])
                self.c_k[k] = renewed
            self.c = self.c + change
        if self.algorithm == "feddyn":
            for k, delta in zip(who, deltas, strict=True):
                self.c_k[k] = self.c_k[k] - MU * delta
            share = np.full(K, 1 / K) if rule == "uniform" else sizes / sizes.sum()
            self.c = share @ self.c_k
            step = step - scale * self.c / MU
        for k in who:
            self.v[k] = np.where(self.own, trained[k], 0)
        self.w = self.w + (SERVER_LR if self.algorithm in ("scaffold", "fednova") else 1) * step


def vectors(params):
    w, b = np.asarray(params["w"]), np.asarray(params["b"])
    return np.concatenate([w, b[..., None]], axis=-1)


def cohorts():
    for ids, reports, work in COHORTS:
        yield fs.Cohort(
            jnp.array(ids, jnp.int32),
            reports=jnp.array(reports, bool),
            inclusion=jnp.full(5, 0.6),
            work=jnp.array(work, jnp.float32),
        )


@pytest.mark.parametrize("own", ["b", slow_after(0, ["w"])[0]])
@pytest.mark.parametrize("name", slow_after(4, ALGORITHMS))
def test_rounds_beside_numpy_under_every_rule(clients, data, name, own):
    algorithm = fs.partial(ALGORITHMS[name], own)

    @jax.jit
    def rounds(number, state):
        round_fn = fs.make_round(algorithm, any_rule(number), fs.execution.packed(2))
        cohort = jax.tree.map(lambda *x: jnp.stack(x), *cohorts())

        def step(state, cohort):
            state, _ = round_fn(KEY, state, data, cohort)
            return state, (state.params, fs.personal_params(algorithm, state, data))

        return jax.lax.scan(step, state, cohort)[1]

    for number, rule in enumerate(RULES):
        reference = Reference(name, clients, OWN[own])
        of_server, of_clients = rounds(number, fs.init(algorithm, zeros(), data))
        for place, cohort in enumerate(COHORTS):
            reference.round(rule, *cohort)
            mine = vectors(of_clients)[place]
            expected = np.array([reference.model(k) for k in range(K)])
            np.testing.assert_allclose(mine, expected, atol=1e-5, err_msg=f"{rule} {place}")
            # The personal leaves of the server's model are the first ones, bit for bit.
            whole = vectors(of_server)[place]
            np.testing.assert_allclose(whole, np.where(OWN[own], 0, reference.w), atol=1e-5)
            assert not whole[OWN[own]].any()


STRATEGIES = {
    "vmapped": fs.execution.vmapped(),
    "sharded": fs.execution.sharded(MESH, fs.execution.packed(2)),
}


@pytest.fixture(scope="module")
def one_lane(data):
    return after_three(data, fs.execution.packed(1))


def after_three(data, execution):
    """SCAFFOLD's state after the first three cohorts."""
    algorithm = fs.partial(ALGORITHMS["scaffold"], "b")
    round_fn = jax.jit(fs.make_round(algorithm, execution=execution))
    state = fs.init(algorithm, zeros(), data)
    for cohort in list(cohorts())[:3]:
        state, _ = round_fn(KEY, state, data, cohort)
    return state


@pytest.mark.parametrize("strategy", slow_after(1, STRATEGIES))
def test_strategies_agree(data, one_lane, strategy):
    state = after_three(data, STRATEGIES[strategy])
    for a, b in zip(jax.tree.leaves(one_lane), jax.tree.leaves(state), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)


def test_what_is_not_shared_is_trained_as_by_every_client_alone(data):
    """A shared parameter that the loss does not look at: all the model is personal but for it."""

    def loss_fn(params, batch, key):
        return linear_loss(params["own"], batch, key) + 0 * params["shared"]

    base = fs.fedavg(loss_fn, optax.sgd(LR), LOCAL)
    params = {"own": zeros(), "shared": np.float32(1)}
    experiment = fs.Experiment(base, params, data, fs.sampling.uniform(3), num_rounds=4)
    alone = fs.baselines.local_models(fs.baselines.local_only(experiment).run(KEY)[0])
    algorithm = fs.partial(base, lambda path: path.startswith("own/"))
    state, _ = experiment._replace(algorithm=algorithm).run(KEY)
    mine = fs.personal_params(algorithm, state)
    np.testing.assert_allclose(vectors(mine["own"]), vectors(alone["own"]), atol=1e-6)
    np.testing.assert_array_equal(state.params["shared"], 1)
    assert vectors(mine["own"]).any()


def test_bytes_are_of_what_is_shared(data):
    def bytes_of(algorithm, personal):
        return tuple(fs.communication(fs.partial(algorithm, personal), zeros(), data))

    assert bytes_of(ALGORITHMS["fedavg"], "b") == (16, 16)
    assert bytes_of(ALGORITHMS["fedavg"], "w") == (4, 4)
    assert bytes_of(ALGORITHMS["scaffold"], "b") == (32, 32)
    # A number for |a_k|_1 and one for the share that counts.
    assert bytes_of(ALGORITHMS["fednova"], "b") == (16, 16 + 8)
    scheduled = fs.fedavg(
        linear_loss, lambda round: optax.sgd(LR * 0.5 ** round.astype(jnp.float32)), LOCAL
    )
    assert bytes_of(scheduled, "b") == (16 + 4, 16)
    codec = fs.compression.top_k(0.5)
    sparse = fs.compression.compressed(fs.partial(scheduled, "b"), codec, error_feedback=True)
    assert tuple(fs.communication(sparse, zeros(), data)) == (20, 2 * (4 + 4))


def test_compressing_what_is_shared(clients, data):
    """The larger two of the four shared entries travel; what is held back is of those four."""
    local = fs.LocalTraining(1, None, shuffle=False)
    base = fs.partial(fs.fedavg(linear_loss, optax.sgd(LR), local), "b")
    algorithm = fs.compression.compressed(base, fs.compression.top_k(0.5), error_feedback=True)
    state = fs.init(algorithm, zeros(), data)
    state, _ = jax.jit(fs.make_round(algorithm, fs.aggregation.uniform))(
        KEY, state, data, fs.Cohort([1, 5])
    )
    w, models = np.zeros(4), np.zeros((K, 5))
    for k in (1, 5):
        moved = -LR * gradient(np.zeros(5), *clients[k])
        sent = moved[:4].copy()
        sent[np.argsort(np.abs(sent))[:2]] = 0
        w += sent / 2
        models[k, 4] = moved[4]
    models[:, :4] = w
    np.testing.assert_allclose(vectors(fs.personal_params(algorithm, state)), models, atol=1e-6)
    (residual,) = state.clients.residual.leaves
    assert residual.shape == (K, 4)


def test_a_median_sees_what_is_shared(clients, data):
    algorithm = fs.partial(fs.fedavg(linear_loss, optax.sgd(LR), LOCAL), "b")
    state = fs.init(algorithm, zeros(), data)
    state, _ = jax.jit(fs.make_round(algorithm, fs.aggregation.median()))(
        KEY, state, data, fs.Cohort([0, 1, 5])
    )
    reference = Reference("fedavg", clients, OWN["b"])
    trained = [reference.train(k, blocks(SIZES[k], 2, 4, "epochs")) for k in (0, 1, 5)]
    np.testing.assert_allclose(state.params["w"], np.median(trained, axis=0)[:4], atol=1e-5)
    kept = np.zeros(K)
    kept[[0, 1, 5]] = [model[4] for model in trained]
    np.testing.assert_allclose(state.clients.personal["b"], kept, atol=1e-5)


def test_what_is_dropped_keeps_what_it_had(data):
    """A client whose own parameters leave what is finite is dropped with them."""
    algorithm = fs.partial(fs.fedavg(linear_loss, optax.sgd(LR), LOCAL), "b")
    state = fs.init(algorithm, zeros(), data)
    wild = state.clients.personal["b"].at[4].set(np.float32(3e38))
    clients = state.clients._replace(personal={"b": wild})
    state = fs.FederatedState(state.server, clients, state.round, state.get_params)
    after, metrics = jax.jit(fs.make_round(algorithm, nonfinite="drop"))(
        KEY, state, data, fs.Cohort([1, 4])
    )
    assert int(metrics.nonfinite) == 1
    assert float(after.clients.personal["b"][4]) == np.float32(3e38)
    assert float(after.clients.personal["b"][1]) != 0
    assert np.isfinite(vectors(after.params)).all()


def test_a_servers_own_movement_leaves_personal_parameters_alone(data):
    """Weight decay at the server moves without an update."""
    server = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(1.0))
    base = fs.fedavg(linear_loss, optax.sgd(LR), LOCAL, server_optimizer=server)
    algorithm = fs.partial(base, "b")
    state = fs.init(algorithm, {"w": np.ones(4, np.float32), "b": np.float32(2)}, data)
    state, _ = jax.jit(fs.make_round(algorithm))(KEY, state, data, fs.Cohort([1, 4]))
    assert float(state.params["b"]) == 2
    assert (np.asarray(state.params["w"]) != 1).all()


def test_rates_may_be_traced(data):
    """A sweep of the rate is one program, and each of it as by itself."""

    def own(rate):
        algorithm = fs.partial(fs.fedavg(linear_loss, optax.sgd(rate), LOCAL), "b")
        state = fs.init(algorithm, zeros(), data)
        round_fn = fs.make_round(algorithm, execution=fs.execution.packed(1))
        state, _ = round_fn(KEY, state, data, fs.Cohort(np.array([1, 4, 5])))
        return fs.personal_params(algorithm, state)

    rates = jnp.array([0.01, 0.05])
    together = jax.jit(jax.vmap(own))(rates)
    for place, rate in enumerate(rates):
        alone = jax.jit(own)(rate)
        np.testing.assert_allclose(vectors(together)[place], vectors(alone), atol=1e-6)


def test_what_travels_says_what_it_is(data):
    algorithm = fs.partial(ALGORITHMS["scaffold"], "b")
    state = fs.init(algorithm, zeros(), data)
    message = algorithm.broadcast(state.server, jnp.int32(0))
    assert isinstance(message.params, Shared)
    assert isinstance(message.control, Shared)
    assert repr(message.params) == "Shared(leaves=(float32[4],))"
    assert repr(state.clients.personal) != ""


def bare_message():
    base = ALGORITHMS["fedavg"]

    def init(message, *rest):
        sent = base.broadcast(base.init(message), jnp.int32(0))
        return base.client.init(sent, *rest)

    return base._replace(
        broadcast=lambda server, round: server.params, client=base.client._replace(init=init)
    )


def bare_carry():
    base = ALGORITHMS["fedavg"]
    return base._replace(client=base.client._replace(init=lambda message, *rest: (message.params,)))


def sends_more():
    """SCAFFOLD whose server begins with another control variate than 0."""
    base = ALGORITHMS["scaffold"]

    def init(params):
        return base.init(params)._replace(control=jax.tree.map(jnp.ones_like, params))

    return base._replace(init=init)


def test_what_clients_keep_of_their_own_part(clients):
    """A gradient that is measured corrects nothing of it; a model that is kept has it trained.

    Where all clients take one step of a full batch, SCAFFOLD's corrections have a mean of 0, and
    its rounds are FedAvg's.
    """
    local, cohort = fs.LocalTraining(1, None, shuffle=False), fs.Cohort(np.arange(3))
    data = federation([clients[k] for k in (1, 4, 5)])

    def features(params, batch):
        return jnp.tanh(batch["x"] * params["w"][None] + params["b"])

    algorithms = (
        fs.fedavg(linear_loss, optax.sgd(LR), local),
        fs.scaffold(linear_loss, LR, local, option=1),
        fs.moon(linear_loss, optax.sgd(LR), local, mu=0.0, features=features),
    )

    def after_three(algorithm):
        state = fs.init(algorithm, zeros(), data)
        round_fn = fs.make_round(algorithm, fs.aggregation.uniform, fs.execution.packed(1))
        return jax.lax.fori_loop(0, 3, lambda _, s: round_fn(KEY, s, data, cohort)[0], state)

    @jax.jit
    def rounds():
        return [after_three(fs.partial(algorithm, "b")) for algorithm in algorithms]

    fedavg, scaffold, moon = (state.clients for state in rounds())
    assert np.all(np.asarray(fedavg.personal["b"]) != 0)
    for other in (scaffold, moon):
        np.testing.assert_allclose(other.personal["b"], fedavg.personal["b"], atol=1e-6)
    np.testing.assert_array_equal(scaffold.own["b"], 0)
    assert np.any(scaffold.own["w"])
    np.testing.assert_array_equal(moon.own.params["b"], moon.personal["b"])


def bare_state():
    """Its clients keep their last model, and that first model is 0."""
    base = ALGORITHMS["fedavg"]
    return base._replace(init_client=lambda params: params)


@pytest.mark.parametrize(
    ("algorithm", "personal", "message"),
    [
        (lambda: "fedavg", "b", "algorithm must be made by fs.fedavg or a sibling; got 'fedavg'"),
        (lambda: fs.fedavg, "b", "got the function fedavg itself: call it"),
        (lambda: fs.mime(linear_loss, LR, LOCAL), "b", "one exchange in a round.*got one of 2"),
        (
            lambda: fs.ifca(linear_loss, optax.sgd(LR), LOCAL, 2),
            "b",
            "must not have personal models already",
        ),
        (lambda: fs.partial(ALGORITHMS["fedavg"], "b"), "w", "must not have personal models"),
        (lambda: fs.fedsgd(linear_loss, optax.sgd(LR)), "b", "clients that train a model"),
        (
            lambda: fs.compression.compressed(ALGORITHMS["fedavg"], fs.compression.top_k(0.5)),
            "b",
            "algorithm must not be compressed.*compress the result",
        ),
        (lambda: ALGORITHMS["fedavg"], 3, "personal must be the path of a parameter.*got 3"),
        (lambda: ALGORITHMS["fedavg"], "", "personal must be the path of a parameter"),
        (lambda: ALGORITHMS["fedavg"], (), "personal must be the path of a parameter"),
        (lambda: ALGORITHMS["fedavg"], ["b", 1], "personal must be the path of a parameter"),
    ],
)
def test_refusals_when_it_is_built(algorithm, personal, message):
    with pytest.raises(ValueError, match=message):
        fs.partial(algorithm(), personal)


@pytest.mark.parametrize(
    ("algorithm", "personal", "message"),
    [
        (None, "bias", "personal 'bias' names no parameter; there are b, w$"),
        (None, ("b", "x*"), r"personal 'x\*' names no parameter; there are b, w$"),
        (None, lambda path: False, "personal must name some parameters, and names none; there are"),
        (None, "b, w", "must leave some of the parameters, and names all of them; there are b, w"),
        (None, "*", "must leave some of the parameters"),
        (None, lambda path: 1, "must return True or False of a path; of 'b' it returns 1"),
        (bare_message, "b", "the model as the field `params` of its message"),
        (bare_carry, "b", "the model as the field `params` of its clients' carry"),
        (sends_more, "b", "what it sends beside is not 0 at 'b', which is personal"),
        (bare_state, "b", "the model that its clients keep as the field `params`"),
    ],
)
def test_refusals_from_init(data, algorithm, personal, message):
    algorithm = ALGORITHMS["fedavg"] if algorithm is None else algorithm()
    with pytest.raises(ValueError, match=message):
        fs.init(fs.partial(algorithm, personal), zeros(), data)


def test_a_state_of_the_algorithm_itself_is_refused(data):
    algorithm = fs.partial(ALGORITHMS["fedavg"], "b")
    state = fs.init(ALGORITHMS["fedavg"], zeros(), data)
    with pytest.raises(ValueError, match="its clients hold no personal parameters"):
        fs.make_round(algorithm)(KEY, state, data, fs.Cohort([1]))


def test_clients_drawn_with_replacement_are_refused(data):
    algorithm = fs.partial(ALGORITHMS["fedavg"], "b")
    experiment = fs.Experiment(algorithm, zeros(), data, fs.sampling.with_replacement(3), 2)
    with pytest.raises(ValueError, match="must not draw with replacement"):
        experiment.run(KEY)


@pytest.mark.parametrize("baseline", [fs.baselines.centralised, fs.baselines.local_only])
def test_a_baseline_is_of_the_algorithm_that_was_made_partial(data, baseline):
    algorithm = fs.partial(ALGORITHMS["fedavg"], "b")
    experiment = fs.Experiment(algorithm, zeros(), data, fs.sampling.uniform(3), 2)
    with pytest.raises(ValueError, match="must have one model for all clients"):
        baseline(experiment)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fedavg", "scaffold"])
def test_the_contract(name):
    """Among others, that `all_clients` is `w + (n_V / n) (selected - w)` of what is shared."""

    def make(loss_fn, local):
        base = {
            "fedavg": lambda: fs.fedavg(loss_fn, optax.sgd(LR), local),
            "scaffold": lambda: fs.scaffold(loss_fn, LR, local),
        }[name]()
        return fs.partial(base, "b")

    certificate = fs.testing.check_algorithm(make, verbose=False)
    assert any("all_clients" in line for line in certificate.lines)
