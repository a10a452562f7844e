"""A run in plain values: its defaults, what belongs to what, and the experiment it makes."""

import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fedjax_sim as fs
from fedjax_sim.core.graphs import operations
from fedjax_sim.settings import build as problem
from fedjax_sim.settings import rooms, splits
from fedjax_sim.settings.options import TRACED
from fedjax_sim.settings.resolve import resolve
from fedjax_sim.settings.resolved import ClientSteps, Decay
from fedjax_sim.settings.rooms import Room, declarations
from fedjax_sim.settings.setting import Setting
from fedjax_sim.transforms import compression
from tests.conftest import MESH, standard_promotion

SMALL = Setting(clients=10, rounds=3, fraction=0.3, epochs=1)


def owed(algorithm):
    """What has no default: which parameters stay with a client."""
    options = declarations("algorithm")[algorithm].options
    return {"personal": "*/bias"} if "personal" in {option.name for option in options} else {}


def history(setting):
    with standard_promotion():
        experiment = problem.experiment(resolve(setting.values()))
        return jax.jit(experiment.run)(jax.random.key(setting.seed))


@pytest.mark.parametrize("dataset", ["digits", "wind"])
@pytest.mark.parametrize("algorithm", declarations("algorithm"))
@pytest.mark.parametrize("sampler", declarations("sampler"))
def test_resolving_is_done_once(dataset, algorithm, sampler):
    setting = Setting(dataset=dataset, algorithm=algorithm, sampler=sampler)
    setting = setting.but(**owed(algorithm)).resolved()
    assert resolve(setting.values()) == setting
    assert Setting.of(setting.values()).resolved() == setting


@pytest.mark.parametrize("algorithm", declarations("algorithm"))
def test_a_schedule_is_taken_or_refused_by_name(algorithm):
    """One whose signature has client_lr takes a function of the round, or is declared without."""
    chosen = SMALL.but(algorithm=algorithm, epochs=None, **owed(algorithm))
    scheduled = chosen.but(schedule="cosine")
    if "schedule" in chosen.resolved().values():
        problem.experiment(scheduled.resolved()).check(jax.random.key(0))
    else:
        with pytest.raises(ValueError, match=r"schedule (belongs to|is not of) algorithm"):
            scheduled.resolved()


def test_what_a_setting_may_go_without():
    """An optional room has no value in a run that does not use it, or says that it does not."""
    plain, without = Setting().resolved(), Setting(compress="none").resolved()
    assert plain.values() == without.values()
    assert not {"compress", "error_feedback", "share"} & {*plain.values()}
    used = Setting.of({"compress": "top_k", "share": 0.1}).resolved().values()
    extra = {name: value for name, value in used.items() if name not in plain.values()}
    assert extra == {"compress": "top_k", "share": 0.1, "error_feedback": False}


def test_each_direction_has_its_codec():
    """What fed-back errors are of is said by each; the bytes are those of both."""
    sent = {"compress": "top_k", "share": 0.1, "error_feedback": True}
    received = {"downlink": "quantise", "downlink_bits": 4}
    resolved = Setting.of({**sent, **received}).resolved()
    assert resolved.extras == {
        **{name: sent[name] for name in ("compress", "error_feedback")},
        "downlink": "quantise",
        "downlink_error_feedback": False,
    }
    # Of 640 + 10 parameters.
    assert problem.experiment(resolved).communication() == (4 * 650 // 8 + 2 * 8, 65 * 8)
    with pytest.raises(ValueError, match="downlink_bits belongs to downlink quantise; there is no"):
        Setting.of({"downlink_bits": 4}).resolved()


@pytest.mark.parametrize("prefix", ["", "downlink_"])
def test_what_cannot_be_fed_back_is_said_by_the_options_names(prefix):
    room = "downlink" if prefix else "compress"
    given = {room: "random_k", f"{prefix}share": 0.1, f"{prefix}error_feedback": True}
    words = f"^{prefix}error_feedback needs {prefix}unbiased to be false for {room} random_k"
    with pytest.raises(ValueError, match=words):
        problem.experiment(Setting.of(given).resolved())
    problem.experiment(Setting.of({**given, f"{prefix}unbiased": False}).resolved())


def test_an_optional_room_of_another_ones_face(monkeypatch):
    """Its options have a prefix, by which both may be set at once."""
    monkeypatch.setitem(rooms.ROOMS, "again", Room(compression, optional=True, prefix="again"))
    (option,) = rooms.declarations("again")["top_k"].options
    assert (option.name, option.argument) == ("again_share", "share")
    codec = rooms.declarations("again")["top_k"].call({"again_share": 0.5, "share": 2.0})
    wire, _ = codec.encode(jnp.arange(4.0), jnp.zeros(4), None)
    assert wire.values.tolist() == [3.0, 2.0]


def test_defaults():
    digits, wind = Setting().resolved(), Setting(dataset="wind").resolved()
    assert (digits.partition, digits.clients, digits.slots) == ("dirichlet", 50, 5)
    assert (digits.options, wind.options) == ({"alpha": 0.3}, {})
    assert (digits.model, digits.client.lr, digits.score) == ("logistic", 0.1, "test_accuracy")
    assert (wind.partition, wind.clients, wind.slots) == ("natural", 10, 3)
    assert (wind.model, wind.client.lr, wind.score) == ("mlp", 0.02, "test_r2")
    adaptive = Setting(server_optimizer="adam").resolved()
    assert (digits.server.lr, adaptive.server.lr) == (1.0, 0.01)
    fedsgd = Setting(algorithm="fedsgd").resolved()
    assert (fedsgd.server.lr, fedsgd.local, fedsgd.client) == (0.1, None, None)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"share": 0.1}, "share belongs to compress .*top_k.*; there is no compress"),
        ({"compress": "none", "error_feedback": True}, "error_feedback .*; there is no compress"),
        ({"compress": "top_j"}, "compress must be one of .*top_k.* or none; got 'top_j'"),
        ({"compress": "top_k"}, "share must be given to top_k"),
        ({"mu": 0.1}, "mu belongs to algorithm .*fedprox.*; the algorithm is fedavg"),
        (
            {"algorithm": "fedsgd", "epochs": 5},
            "epochs is not of algorithm fedsgd, but of [0-9]+ others",
        ),
        (
            {"algorithm": "scaffold", "server_optimizer": "adam"},
            "server_optimizer .* algorithm",
        ),
        ({"algorithm": "fednova", "schedule": "cosine"}, "schedule is not of algorithm fednova"),
        (
            {"decay_rate": 0.9},
            "decay_rate belongs to schedule exponential and step; the schedule is constant",
        ),
        ({"sampler": "everyone", "fraction": 0.5}, "fraction belongs to sampler .*bernoulli"),
        ({"algorithm": "fedopt"}, "algorithm must be one of afl, .*fedprox.*'fedopt'"),
        ({"sampler": "poisson"}, "sampler must be one of .*bernoulli.*'poisson'"),
        ({"schedule": "cosin", "decay_end": 0.1}, "schedule must be one of constant.*'cosin'"),
        ({"server_optimizer": "sdg"}, "server_optimizer must be one of sgd.*'sdg'"),
        ({"client_momentum": 1.0}, r"client_momentum must be finite and in \[0, 1\); got 1.0"),
        ({"schedule": "step", "decay_rate": 0.0}, r"decay_rate .*in \(0, 1\]; got 0"),
        (
            {"schedule": "cosine", "decay_rounds": 9, "rounds": 10},
            "decay_rounds must be at least "
            "the 10 rounds where decay_end is 0: cosine leaves a rate of 0 from round 10 on.*; got "
            "9",
        ),
        ({"schedule": "exponential", "decay_rate": 0.1}, "from round 38 on; got 0.1 with decay"),
        ({"schedule": "linear", "decay_rounds": 0}, "decay_rounds must be .*got 0"),
        ({"min_examples": -1}, "min_examples must be a whole number, at least 0; got -1"),
        ({"min_examples": 1.5}, "min_examples must be a whole number, at least 0; got 1.5"),
        ({"min_examples": 1, "partition": "iid"}, "belongs to partition dirichlet and quantity; "),
        ({"evaluate_every": 0}, "evaluate_every must be .*got 0"),
        ({"seed": -1}, r"seed must be a whole number, in \[0, 2\^32\); got -1"),
        ({"fraction": 1.5}, r"fraction .*in \(0, 1\]; got 1.5"),
        ({"batch_size": "ten"}, "must be a whole number, at least 1, or full; got 'ten'"),
        ({"algorithm": "fedprox", "mu": -0.1}, "mu must be .*at least 0; got -0.1"),
    ],
)
def test_what_cannot_be_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        Setting.of(given).resolved()


@pytest.mark.parametrize("split", ["dirichlet", "quantity"])
def test_the_fewest_examples_of_a_client(split):
    """The split of the library's function, whose default it is, and what was saved before."""
    setting = Setting(partition=split, clients=20)
    assert "min_examples" not in setting.resolved().values()
    for fewest in (None, 0, 1, 20):
        chosen = setting.but(min_examples=fewest).resolved()
        dealt = splits.split(chosen.data)
        _, key = splits.keys(0)
        more = {} if fewest is None else {"min_examples": fewest}
        labels = dealt.dataset.train["y"]
        expected = (
            fs.partition.dirichlet(key, labels, 20, 0.3, **more)
            if split == "dirichlet"
            else fs.partition.quantity(key, len(labels), 20, **more)
        )
        np.testing.assert_array_equal(dealt.client_ids, expected)
        fewest_dealt = np.bincount(dealt.client_ids, minlength=20).min()
        assert fewest_dealt >= (1 if fewest is None else fewest)


@pytest.mark.slow
@pytest.mark.parametrize(
    "given",
    [
        {},
        {"algorithm": "fedprox", "mu": 1.0, "mode": "uniform"},
        {"algorithm": "scaffold", "mode": "uniform", "sampler": "weighted"},
        {"algorithm": "fedsgd", "epochs": None, "sampler": "bernoulli"},
        {"sampler": "with_replacement", "mode": "unbiased", "batch_size": "full"},
        {"sampler": "everyone", "fraction": None, "partition": "shards"},
        {"schedule": "cosine", "client_momentum": 0.9},
        {"schedule": "step", "model": "mlp", "partition": "iid"},
        {"server_optimizer": "adam"},
        {"server_optimizer": "yogi"},
        {"server_optimizer": "adagrad"},
    ],
    ids=lambda given: "-".join(str(value) for value in given.values()),
)
def test_it_trains(given):
    _, found = history(SMALL.but(**given, per_client=True, evaluate_every=2))
    assert found.evaluated.tolist() == [False, True, True]
    assert {"test_accuracy", "test_loss", "clients_accuracy_jain"} <= set(found.evaluation)
    assert np.isfinite(found.rounds.train["loss"][np.asarray(found.rounds.senders) > 0]).all()
    assert found.evaluation["test_loss"][-1] < np.log(10)


def test_r2_by_hand():
    setting = replace(SMALL, dataset="wind", fraction=0.5).resolved()
    state, found = history(setting)
    given = problem.problem(setting)
    x, y = (np.asarray(given.test.examples[name]) for name in "xy")
    outputs = []
    with standard_promotion():
        model = fs.models.mlp(x.shape[1:], (32, 32), 1)
        outputs = np.asarray(model.apply(state.params, x))[:, 0]
    r2 = 1 - ((outputs - y) ** 2).sum() / ((y - y.mean()) ** 2).sum()
    assert found.evaluation["test_r2"][-1] == pytest.approx(r2, abs=1e-5)


@pytest.mark.parametrize(
    ("given", "rates"),
    [
        pytest.param({"schedule": "linear"}, [1, 3 / 4, 2 / 4, 1 / 4], marks=pytest.mark.slow),
        ({"schedule": "linear", "decay_rounds": 2, "decay_end": 0.5}, [1, 0.75, 0.5, 0.5]),
        ({"schedule": "cosine"}, [(1 + np.cos(np.pi * t / 4)) / 2 for t in range(4)]),
        pytest.param(
            {"schedule": "exponential", "decay_rate": 0.5},
            [1, 0.5, 0.25, 0.125],
            marks=pytest.mark.slow,
        ),
        ({"schedule": "step", "decay_rate": 0.1, "decay_rounds": 2}, [1, 1, 0.1, 0.1]),
        # SCAFFOLD of one client: c is c_k, which corrects nothing.
        pytest.param(
            {"algorithm": "scaffold", "schedule": "cosine"},
            [(1 + np.cos(np.pi * t / 4)) / 2 for t in range(4)],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_schedules_by_hand(given, rates):
    """One step on one client: the norm of the update is the rate times the gradient's."""
    setting = Setting(
        clients=1,
        partition="iid",
        fraction=1.0,
        epochs=1,
        batch_size="full",
        client_lr=1e-3,
        rounds=4,
        **given,
    ).resolved()
    experiment = problem.experiment(setting)
    key = jax.random.key(0)
    loss_fn, state = problem.problem(setting).loss_fn, experiment.start(key)
    gradient = jax.jit(
        jax.grad(lambda w: fs.evaluate(loss_fn, w, experiment.data, batch_size=1437).mean["loss"])
    )
    step = jax.jit(experiment.next_round)
    for rate in rates:
        after, _ = step(key, state)
        moved = jax.tree.map(lambda a, b: a - b, after.params, state.params)
        slope = jax.tree.leaves(gradient(state.params))
        for d, g in zip(jax.tree.leaves(moved), slope, strict=True):
            np.testing.assert_allclose(d, -1e-3 * rate * g, rtol=2e-3, atol=1e-6)
        state = after


@pytest.mark.slow
def test_what_may_be_traced_is():
    """All of it in one program: each changed alone, and together as where nothing is traced."""
    base = replace(SMALL, algorithm="fedprox", schedule="cosine")

    def loss(given):
        made = problem.experiment(base.but(**given).resolved())
        return made.run(jax.random.key(0))[1].rounds.train["loss"]

    # None is changed, each one alone, all of them.
    rows = np.concatenate([np.full((1, 5), 0.1), 0.1 + 0.4 * np.eye(5), np.full((1, 5), 0.5)])
    names = [name for name in TRACED if name in base.resolved().values()]
    values = dict(zip(names, jnp.asarray(rows.T, jnp.float32), strict=True))
    with standard_promotion():
        traced = jax.jit(jax.vmap(loss))(values)
        for row in traced[1:]:
            assert (row[1:] != traced[0, 1:]).any()
        _, alone = history(base.but(**dict.fromkeys(names, 0.5)))
    np.testing.assert_allclose(traced[-1], alone.rounds.train["loss"], rtol=1e-5)


def test_data_are_split_once():
    setting = SMALL.resolved()
    before = problem.problem(setting)
    others = {"client_lr": 0.5, "epochs": 3, "mode": "uniform"}
    assert problem.problem(SMALL.but(**others).resolved()) is before
    assert problem.problem(SMALL.but(alpha=0.9).resolved()) is not before

    def inside(x):  # a sweep's factory is called in a trace
        given = problem.problem(SMALL.but(alpha=0.7).resolved())
        assert not isinstance(given.data.num_examples, jax.core.Tracer)
        return x

    jax.eval_shape(inside, jnp.zeros(()))


def test_a_mesh_deals_the_cohort_and_what_is_measured():
    experiment = problem.experiment(SMALL.resolved(), MESH)
    assert experiment.execution.mesh is MESH
    params = jax.eval_shape(experiment.params, jax.random.key(0))
    assert "shard_map" in operations(jax.make_jaxpr(experiment.evaluate)(params))
    assert problem.experiment(SMALL.resolved()).execution is None
    named = problem.experiment(replace(SMALL, execution="packed:2").resolved())
    assert named.execution.lanes == 2
    with pytest.raises(ValueError, match=re.escape("packed:4 needs a lane's client")):
        replace(SMALL, execution="packed:4").resolved()


@settings(max_examples=60, deadline=None)
@given(
    schedule=st.sampled_from(["cosine", "linear", "exponential", "step"]),
    rounds=st.integers(1, 40),
    span=st.integers(1, 50),
    of=st.sampled_from([0.0, 1e-3, 0.5, 1.0]),
)
def test_a_schedule_is_refused_where_a_round_has_rate_0(schedule, rounds, span, of):
    """Against optax's own schedule, in float32."""
    decay = {"decay_end": of} if schedule in ("cosine", "linear") else {"decay_rate": of or 1e-9}
    chosen = Setting(schedule=schedule, rounds=rounds, decay_rounds=span, **decay)
    # What `_schedule` reads is the same whether it is refused or not.
    steps = ClientSteps(0.1, None, Decay(schedule, span, end=of, rate=of or 1e-9))
    rate = problem._schedule(steps)
    rates = np.asarray(jax.vmap(rate)(jnp.arange(40)))[:rounds]
    if (rates < np.finfo(np.float32).tiny).any():
        first = int(np.argmax(rates < np.finfo(np.float32).tiny)) + 1
        with pytest.raises(ValueError, match=rf"decay_\w+ must .* from round {first} on"):
            chosen.resolved()
    else:
        chosen.resolved()
