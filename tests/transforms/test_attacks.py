"""What malicious clients send: NumPy's attacks, and rounds under attack by every strategy."""

from statistics import NormalDist

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fedjax_sim as fs
from fedjax_sim.host.identity import program
from tests.aggregation import references as numpy
from tests.conftest import MESH, federation, flat, linear_loss, zeros
from tests.helpers.reference import Server, blocks

LR, LOCAL, KEY = 0.02, fs.LocalTraining(2, 4, shuffle=False), jax.random.key(0)
SLOTS = 6
KEYS = jax.random.split(KEY, SLOTS)
NUMBERS = st.sampled_from([-8.0, -0.5, 0.0, 0.25, 1.0, 1.0, 3.0])
ATTACKS = {
    "sign_flip": fs.attacks.sign_flip(2.0),
    "alie": fs.attacks.alie(),
    "alie of 1.5": fs.attacks.alie(1.5),
    "omniscient alie": fs.attacks.alie(omniscient=True),
    "ipm": fs.attacks.ipm(0.5),
}
COMPILED = {name: jax.jit(attack) for name, attack in ATTACKS.items()}


def sent_by_numpy(name, d, bad, counted):
    """Rows of the malicious, in float64 from the papers."""
    honest = counted & ~bad
    if name == "sign_flip":
        return -2 * d[bad]
    if name == "ipm":
        return np.tile(-0.5 * d[honest].mean(axis=0), (bad.sum(), 1))
    known = d[honest] if name.startswith("omniscient") else d[bad]
    n, f = counted.sum(), bad.sum()
    supporters = max(n // 2 + 1 - f, 1)
    share = (n - f - supporters) / (n - f)
    z = 1.5 if name.endswith("1.5") else NormalDist().inv_cdf(share) if share > 0.5 else 0.0
    return np.tile(known.mean(axis=0) + z * known.std(axis=0), (bad.sum(), 1))


@pytest.mark.parametrize("name", ATTACKS)
@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(st.lists(NUMBERS, min_size=3, max_size=3), min_size=SLOTS, max_size=SLOTS),
    bad=st.lists(st.booleans(), min_size=SLOTS, max_size=SLOTS),
    counted=st.lists(st.sampled_from([True, True, False]), min_size=SLOTS, max_size=SLOTS),
    broken=st.booleans(),
)
def test_equals_numpys_float64(name, rows, bad, counted, broken):
    counted, d = np.array(counted), np.array(rows)
    bad = np.array(bad) & counted
    if not bad.any() or not (counted & ~bad).any():
        return
    if broken and (counted & ~bad).any():  # an honest update that is not finite
        d[np.flatnonzero(counted & ~bad)[0], 0] = np.nan
    tree = {"w": jnp.asarray(np.where(counted[:, None], d, 0), jnp.float32)}
    sent = COMPILED[name](tree, jnp.asarray(bad), jnp.asarray(counted), KEYS)["w"]
    expected = sent_by_numpy(name, d, bad, counted)
    np.testing.assert_allclose(sent[bad], expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(sent[counted & ~bad], d[counted & ~bad].astype(np.float32))


def test_the_papers_z():
    """Of 51 clients, 24 of them malicious: 2 supporters of 27, z = 1.45 (the paper says 1.5)."""
    rng = np.random.default_rng(0)
    d, bad = rng.normal(size=(51, 4)), np.arange(51) < 24
    keys = jax.random.split(KEY, 51)
    sent = fs.attacks.alie()(
        jnp.asarray(d, jnp.float32), jnp.asarray(bad), jnp.ones(51, bool), keys
    )
    z = (np.asarray(sent[0]) - d[bad].mean(axis=0)) / d[bad].std(axis=0)
    np.testing.assert_allclose(z, NormalDist().inv_cdf(25 / 27), rtol=1e-4)


def test_noise_is_of_the_client_and_not_of_its_slot():
    updates, bad = jnp.ones((SLOTS, 4000)), jnp.arange(SLOTS) < 3
    attack = fs.attacks.gaussian(3.0)
    sent = attack(updates, bad, jnp.ones(SLOTS, bool), KEYS)
    np.testing.assert_allclose(sent[:3].std(axis=1), 3, rtol=0.05)
    np.testing.assert_allclose(sent[:3].mean(axis=1), 0, atol=0.2)
    assert len({float(x) for x in sent[:3, 0]}) == 3
    turned = attack(updates[::-1], bad[::-1], jnp.ones(SLOTS, bool), KEYS[::-1])
    np.testing.assert_array_equal(turned[::-1], sent)


MALICIOUS = np.isin(np.arange(8), [1, 5])
IDS = [1, 4, 5, 0, 7, 6]
STRATEGIES = {
    "vmapped": fs.execution.vmapped(),
    "packed": fs.execution.packed(2),
    "sharded": fs.execution.sharded(MESH, fs.execution.packed(1)),
}


def trained(clients, ids):
    """The updates of these clients in NumPy."""
    reference = Server("fedavg", clients, np.ones(8), 5, LR)
    steps = [blocks(len(clients[k][1]), LOCAL.epochs, LOCAL.batch_size, LOCAL.order) for k in ids]
    return np.array([reference.train(k, s) for k, s in zip(ids, steps, strict=True)])


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("rule", ["krum", "selected"])
def test_a_round_under_attack(clients, strategy, rule):
    """Krum under ALIE, and the mean of the stack, by every strategy and in NumPy."""
    made = fs.aggregation.krum(1) if rule == "krum" else fs.aggregation.selected
    algorithm, data = fs.fedavg(linear_loss, optax.sgd(LR), LOCAL), federation(clients)
    attack, malicious = fs.attacks.alie(1.5), jnp.asarray(MALICIOUS)
    execution = STRATEGIES[strategy]
    round_fn = jax.jit(
        fs.make_round(algorithm, made, execution, attack=attack, malicious=malicious)
    )
    state = fs.init(algorithm, zeros(), data)
    if strategy == "sharded":
        data, state = fs.execution.replicate((data, state), MESH)
    reports = jnp.array([True, True, True, True, True, False])
    state, metrics = round_fn(KEY, state, data, fs.Cohort(jnp.array(IDS), reports=reports))
    ids = np.array(IDS[:5])
    d, bad = trained(clients, ids), MALICIOUS[ids]
    d[bad] = d[bad].mean(axis=0) + 1.5 * d[bad].std(axis=0)
    weights = np.array([len(clients[k][1]) for k in ids])
    expected = numpy.multi_krum(d, 1, 1, ids) if rule == "krum" else weights @ d / weights.sum()
    np.testing.assert_allclose(flat(state.params), expected, rtol=1e-5, atol=1e-5)
    assert int(metrics.reporting) == 5


def test_without_an_attack_the_program_is_the_same(data):
    """Nobody pays for what is not used; and malicious clients of no number change no average."""
    algorithm = fs.fedavg(linear_loss, optax.sgd(LR), LOCAL)
    state, cohort = fs.init(algorithm, zeros(), data), fs.Cohort(jnp.array(IDS))

    def text(**given):
        round_fn = fs.make_round(algorithm, execution=fs.execution.vmapped(), **given)
        return str(jax.make_jaxpr(round_fn)(KEY, state, data, cohort))

    assert text() == text(attack=None, malicious=None)
    nobody = {"attack": fs.attacks.sign_flip(), "malicious": jnp.zeros(8, bool)}
    assert text() != text(**nobody)
    plain, under = (
        jax.jit(fs.make_round(algorithm, execution=fs.execution.vmapped(), **x))(
            KEY, state, data, cohort
        )[0]
        for x in ({}, nobody)
    )
    np.testing.assert_allclose(flat(plain.params), flat(under.params), rtol=1e-5)


@pytest.mark.slow
def test_an_attack_that_is_not_finite(data):
    """It is counted as such, and dropped where such updates are."""

    def attack(updates, malicious, counted, key):
        return jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), updates)

    algorithm = fs.fedavg(linear_loss, optax.sgd(LR), LOCAL)
    state, cohort = fs.init(algorithm, zeros(), data), fs.Cohort(jnp.array(IDS))
    given_attack = {"attack": attack, "malicious": MALICIOUS, "execution": fs.execution.vmapped()}
    round_fn = jax.jit(fs.make_round(algorithm, nonfinite="drop", **given_attack))
    dropped, metrics = round_fn(KEY, state, data, cohort)
    assert (int(metrics.nonfinite), int(metrics.reporting)) == (2, 4)
    honest = fs.Cohort(jnp.array([4, 0, 7, 6]))
    round_fn = jax.jit(fs.make_round(algorithm, execution=fs.execution.vmapped()))
    alone, _ = round_fn(KEY, state, data, honest)
    np.testing.assert_allclose(flat(dropped.params), flat(alone.params), rtol=1e-5)
    robust = jax.jit(fs.make_round(algorithm, fs.aggregation.trimmed_mean(0.4), **given_attack))
    assert np.isfinite(flat(robust(KEY, state, data, cohort)[0].params)).all()


@pytest.mark.slow
def test_who_and_which_may_be_traced(data):
    """One program for several attacks and shares; each is that of its own program."""
    several = fs.attacks.sign_flip(), fs.attacks.ipm(3.0)
    algorithm = fs.fedavg(linear_loss, optax.sgd(LR), LOCAL)
    state, cohort = fs.init(algorithm, zeros(), data), fs.Cohort(jnp.array(IDS))

    def moved(index, share):
        malicious = fs.attacks.draw_malicious(KEY, 8, share)
        attack = fs.attacks.chosen(index, *several)
        round_fn = fs.make_round(
            algorithm, execution=fs.execution.vmapped(), attack=attack, malicious=malicious
        )
        return round_fn(KEY, state, data, cohort)[0].params["w"]

    together = jax.jit(jax.vmap(moved))(jnp.array([0, 1, 1]), jnp.array([0.4, 0.4, 0.8]))
    jitted = jax.jit(moved, static_argnums=0)
    for place, (index, share) in enumerate([(0, 0.4), (1, 0.4), (1, 0.8)]):
        np.testing.assert_allclose(together[place], jitted(index, share), rtol=1e-5, atol=1e-6)
    assert not np.allclose(together[1], together[2])


def test_who_is_malicious():
    draw = [np.asarray(fs.attacks.draw_malicious(KEY, 20, share)) for share in (0.01, 0.3, 1.0)]
    assert [x.sum() for x in draw] == [1, 6, 20]
    assert (draw[1] >= draw[0]).all()
    other = fs.attacks.draw_malicious(jax.random.key(1), 20, 0.3)
    assert not np.array_equal(draw[1], other)


def test_labels():
    """Reversed in the rows of malicious clients alone, one without examples among them."""
    y = [np.array([0, 1]), np.array([], np.int64), np.array([2, 0, 1]), np.array([1])]
    data = fs.FederatedData.from_clients([{"x": np.ones((len(v), 2)), "y": v} for v in y])
    bad = jnp.array([False, True, True, False])
    flipped = fs.attacks.flip_labels(data, bad, 3)
    for k, own in enumerate(y):
        begin = int(data.offsets[k])
        rows = np.asarray(flipped.examples["y"])[begin : begin + len(own)]
        np.testing.assert_array_equal(rows, 2 - own if bad[k] else own)
    assert flipped.examples["x"] is data.examples["x"]
    with pytest.raises(ValueError, match=r"y must lie in \[0, 2\), the classes; got 2"):
        fs.attacks.flip_labels(data, bad, 2)


@pytest.mark.parametrize(
    "algorithm",
    [
        fs.feddyn(linear_loss, optax.sgd(LR), LOCAL, alpha=0.1),
        fs.mifa(linear_loss, optax.sgd(LR), LOCAL),
    ],
    ids=["feddyn", "mifa"],
)
def test_what_is_sent_once_is_not_attacked_by_half(data, algorithm):
    """FedDyn's server would sum what malicious clients trained, and MIFA's read nothing else."""
    round_fn = fs.make_round(algorithm, attack=fs.attacks.sign_flip(), malicious=MALICIOUS)
    state, cohort = fs.init(algorithm, zeros(), data), fs.Cohort(jnp.array(IDS))
    with pytest.raises(ValueError, match="attack must not be given for an algorithm whose cli"):
        jax.eval_shape(round_fn, KEY, state, data, cohort)


def test_a_resume_knows_the_attack_and_the_malicious(data):
    def parts(**given_attack):
        algorithm = fs.fedavg(linear_loss, optax.sgd(LR), LOCAL)
        experiment = fs.Experiment(
            algorithm, zeros(), data, fs.sampling.uniform(3), 2, **given_attack
        )
        return program(lambda key: experiment, KEY)["parts"]

    plain, base = parts(), parts(attack=fs.attacks.ipm(0.5), malicious=MALICIOUS)
    assert {*base} - {*plain} == {"attack"}
    assert base == parts(attack=fs.attacks.ipm(0.5), malicious=MALICIOUS)
    others = [(fs.attacks.ipm(0.6), MALICIOUS), (fs.attacks.ipm(0.5), ~MALICIOUS)]
    for attack, malicious in others:
        other = parts(attack=attack, malicious=malicious)
        assert {name for name in base if base[name] != other[name]} == {"attack"}


@pytest.mark.parametrize(
    ("given_attack", "message"),
    [
        ({"attack": fs.attacks.ipm(0.5)}, r"attack needs malicious, Bool\[K\]"),
        ({"malicious": MALICIOUS}, "malicious clients need an attack"),
        ({"attack": "alie", "malicious": MALICIOUS}, r"attack must be fs.attacks.alie\(...\)"),
        ({"attack": fs.attacks.alie, "malicious": MALICIOUS}, r"attack must take \(updates, mali"),
        ({"attack": fs.attacks.alie(), "malicious": [1, 5]}, r"must be Bool\[K\].* got int64\[2\]"),
        (
            {"attack": fs.attacks.alie(), "malicious": MALICIOUS[:7]},
            "federation's 8 clients; got 7",
        ),
        (
            {"attack": lambda d, bad, counted, key: d["w"], "malicious": MALICIOUS},
            "attack must keep the structure, shapes and dtypes of the updates",
        ),
    ],
)
def test_what_cannot_attack(data, given_attack, message):
    algorithm = fs.fedavg(linear_loss, optax.sgd(LR), LOCAL)
    state = fs.init(algorithm, zeros(), data)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(
            fs.make_round(algorithm, **given_attack), KEY, state, data, fs.Cohort(jnp.arange(3))
        )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fs.attacks.sign_flip(0.0), "scale must be finite and positive"),
        (lambda: fs.attacks.gaussian(-1.0), "std must be finite and positive"),
        (lambda: fs.attacks.alie(np.inf), "z must be finite"),
        (lambda: fs.attacks.ipm(-1.0), "eps must be finite and at least 0"),
        (lambda: fs.attacks.chosen(0), "at least one attack"),
        (lambda: fs.attacks.chosen(2, *2 * [fs.attacks.alie()]), "from 0 to 1; got 2"),
        (lambda: fs.attacks.draw_malicious(KEY, 9, 0.0), r"share must be finite and in \(0, 1\]"),
        (lambda: fs.attacks.draw_malicious(KEY, 9, 1.1), r"share must be finite and in \(0, 1\]"),
        (lambda: fs.attacks.malicious_of([3, 9], 9), r"ids of clients in \[0, 9\); got 9"),
        (lambda: fs.attacks.malicious_of([], 9), "ids of clients, whole numbers"),
        (lambda: fs.attacks.flip_labels(3, MALICIOUS, 2), "data must be a federation in memory"),
    ],
)
def test_what_no_attack_can_be(make, message):
    with pytest.raises(ValueError, match=message):
        make()
