"""A server that sends by a codec: rounds beside NumPy, bytes and receivers, every algorithm."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from fedjax_sim import algorithms
from fedjax_sim.core.registry import declared
from tests.conftest import MESH, SIZES, flat, linear_loss, zeros
from tests.helpers.reference import gradient

MODEL = fs.models.logistic_regression((3,), 2)
PARAMS = {"layers_1": {"kernel": np.zeros((3, 2), np.float32), "bias": np.zeros(2, np.float32)}}

LR = 0.05
LOCAL = fs.LocalTraining(1, None, shuffle=False)
FEDAVG = fs.fedavg(linear_loss, optax.sgd(LR), LOCAL)
compression = fs.compression
compressed = compression.compressed
IDS = ((1, 4, 5), (4, 5, 7), (5, 1, 4), (1, 7, 6), (7, 4, 0))


def after(algorithm, data, execution=None, params=None, rounds=IDS):
    execution = fs.execution.vmapped() if execution is None else execution
    round_fn = jax.jit(fs.make_round(algorithm, execution=execution))
    state = fs.init(algorithm, zeros() if params is None else params, data)
    for ids in rounds:
        state, metrics = round_fn(
            jax.random.key(0), state, data, fs.Cohort(jnp.array(ids, jnp.int32))
        )
    return state, metrics


def two_largest(v):
    """Of w the two largest of four, and b, which is one."""
    sent = v.copy()
    sent[np.argsort(np.abs(v[:4]))[:2]] = 0
    return sent


def numpy_after(clients, error_feedback):
    """The server's model, and the one that clients have next."""
    v = np.zeros(5)
    sent = np.zeros(5)
    for ids in IDS:
        moved = [SIZES[k] * -LR * gradient(sent, *clients[k]) for k in ids]
        v = v + sum(moved) / sum(SIZES[k] for k in ids)
        sent = sent + two_largest(v - sent) if error_feedback else two_largest(v)
    return v, sent


@pytest.mark.parametrize(
    ("error_feedback", "execution"),
    [
        (True, fs.execution.vmapped()),
        (False, fs.execution.packed(2)),
        pytest.param(True, fs.execution.sharded(MESH), marks=pytest.mark.slow),
    ],
)
def test_rounds_are_those_of_numpy(clients, data, error_feedback, execution):
    algorithm = compressed(FEDAVG, downlink=compression.top_k(0.5), error_feedback=error_feedback)
    state, metrics = after(algorithm, data, execution)
    v, sent = numpy_after(clients, error_feedback)
    np.testing.assert_allclose(flat(state.params), v, atol=1e-6)
    np.testing.assert_allclose(flat(state.server.sent), sent, atol=1e-6)
    assert np.abs(v - sent).max() > 0.005
    assert np.abs(v - numpy_after(clients, not error_feedback)[0]).max() > 0.001
    # Errors are fed back to who has had all messages: all K are sent them.
    assert int(metrics.receivers) == (len(SIZES) if error_feedback else 3)
    assert int(metrics.senders) == 3


def test_bytes_of_both_directions_are_exact(data):
    quantised, signs = compression.quantise(3), compression.sign()
    four_and_one = 3 * 4 + 64 + 3 * 1 + 64
    for algorithm, down, up in (
        (compressed(FEDAVG, downlink=quantised), -(-four_and_one // 8), 20),
        (compressed(FEDAVG, signs, quantised), -(-four_and_one // 8), -(-(4 + 32 + 1 + 32) // 8)),
        (compressed(FEDAVG, compression.random_k(0.5)), 20, (2 + 1) * 4 + 8),
        (compressed(FEDAVG, downlink=compression.random_k(0.5)), (2 + 1) * 4 + 8, 20),
        # SCAFFOLD's control variates travel as they are, both ways.
        (compressed(fs.scaffold(linear_loss, LR, LOCAL), signs, signs), 9 + 20, 9 + 20),
    ):
        assert fs.communication(algorithm, zeros(), data) == (down, up)
    decaying = fs.fedavg(linear_loss, lambda round: optax.sgd(LR / (1 + jnp.float32(round))), LOCAL)
    assert fs.communication(compressed(decaying, downlink=signs), zeros(), data).down == 9 + 4
    # What stays with a client is neither encoded nor counted.
    part = compressed(fs.partial(FEDAVG, "b"), signs, signs)
    assert fs.communication(part, zeros(), data) == (5, 5)


def test_a_run_counts_what_it_sends(data):
    algorithm = compressed(
        FEDAVG, compression.top_k(0.5), compression.quantise(8), error_feedback=True
    )
    experiment = fs.Experiment(algorithm, zeros(), data, fs.sampling.uniform(2), 3)
    history = fs.simulate(experiment, jax.random.key(0)).history
    down, up = fs.communication(algorithm, zeros(), data)
    assert (down, up) == (-(-(8 * 5 + 128) // 8), 24)
    senders = int(np.asarray(history.rounds.senders).sum())
    expected = (3 * len(SIZES) * down, senders * up)
    assert experiment.communication().total(history.rounds) == expected


@pytest.mark.parametrize(
    "codec",
    [
        compression.top_k(1.0),
        pytest.param(compression.random_k(1.0), marks=pytest.mark.slow),
        compression.quantise(16),
        pytest.param(compression.quantise(16, rotated=True), marks=pytest.mark.slow),
    ],
)
def test_codecs_that_send_all_are_the_simpler_self(data, codec):
    """Both ways: top-k of all entries to the bit of the model, 16 bits to a 65,535th."""
    plain, _ = after(FEDAVG, data)
    state, _ = after(compressed(FEDAVG, codec, codec), data)
    np.testing.assert_allclose(flat(state.params), flat(plain.params), rtol=1e-3, atol=1e-4)


@pytest.fixture(scope="module")
def drawing(data):
    """An algorithm whose codecs draw, and what it comes to."""
    algorithm = compressed(FEDAVG, compression.random_k(0.5), compression.quantise(12))
    return algorithm, flat(after(algorithm, data)[0].params)


@pytest.mark.parametrize(
    "execution",
    [
        fs.execution.packed(1),
        pytest.param(fs.execution.packed(3), marks=pytest.mark.slow),
        pytest.param(fs.execution.sharded(MESH), marks=pytest.mark.slow),
    ],
)
def test_strategies_agree_where_codecs_draw(data, drawing, execution):
    algorithm, expected = drawing
    other, _ = after(algorithm, data, execution)
    # A level that rounding changes moves the model by a step, a 4,095th of its range.
    np.testing.assert_allclose(flat(other.params), expected, atol=5e-4)


def test_draws_are_of_the_round_and_an_empty_one_keeps_what_was_sent(data):
    algorithm = compressed(FEDAVG, downlink=compression.random_k(0.5))
    round_fn = jax.jit(fs.make_round(algorithm))
    first = fs.init(algorithm, zeros(), data)
    cohorts = [fs.Cohort(jnp.array(ids, jnp.int32)) for ids in (*IDS, (2, 2, 2))]
    state, sent = first, []
    for cohort in cohorts[:-1]:
        state, _ = round_fn(jax.random.key(0), state, data, cohort)
        sent.append(flat(state.server.sent))
    assert len({tuple(np.flatnonzero(x)) for x in sent}) > 1
    again, _ = round_fn(jax.random.key(0), first, data, cohorts[0])
    np.testing.assert_array_equal(flat(again.server.sent), sent[0])
    # The first message is drawn alike for all keys.
    other, _ = round_fn(jax.random.key(1), first, data, cohorts[0])
    np.testing.assert_array_equal(
        flat(other.params), flat(again.params)
    )  # the first is drawn alike
    # Client 2 has no examples.
    later, metrics = round_fn(jax.random.key(0), state, data, cohorts[-1])
    assert bool(metrics.empty)
    jax.tree.map(np.testing.assert_array_equal, later.server, state.server)


def build(declaration):
    """An algorithm as its declaration has it, of classes, since some need logits."""
    values = {option.name: option.default for option in declaration.options}
    if "personal" in values:
        values["personal"] = "layers_1/bias"
    return declaration.call(
        values,
        loss_fn=fs.models.cross_entropy(MODEL.apply),
        client_optimizer=optax.sgd(LR),
        client_lr=LR,
        local=fs.LocalTraining(2, 2),
        unlabelled={"x": np.ones((4, 3), np.float32)},
        server_lr=1.0,
        server_optimizer=optax.sgd(1.0),
    )


# What is refused, and why, of `uplink`, of it with error feedback, and so of `downlink`.
ONE_EXCHANGE, PROBES = "one exchange in a round", "clients probe"
OWN_WIRE = "must send its update as it is"
SEES_ALL = "have a server that sees every model"
REFUSED = {
    "mime": dict.fromkeys(("up", "up fed back", "down", "down fed back"), ONE_EXCHANGE),
    "feddyn": dict.fromkeys(("up", "up fed back"), OWN_WIRE),
    "mifa": dict.fromkeys(("up", "up fed back"), OWN_WIRE),
    "ifca": dict.fromkeys(("up", "up fed back"), OWN_WIRE),
    "feddf": dict.fromkeys(("up", "up fed back"), SEES_ALL),
}


QUICK = ("fedavg", "scaffold", "mime", "feddyn", "mifa", "ifca", "ditto", "fedper")


@pytest.mark.parametrize(
    "name",
    [
        name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)
        for name in declared(algorithms)
    ],
)
def test_every_algorithm_composes_or_says_why(name):
    """Nothing is computed but shapes: of a round with everything that its algorithm allows."""
    declaration, signs, refused = declared(algorithms)[name], compression.sign(), {}
    algorithm = build(declaration)
    several = declaration.facts.several_models is not None
    params = jax.tree.map(lambda x: jnp.stack([x, x + 1]), PARAMS) if several else PARAMS
    data = fs.FederatedData.from_clients(
        [{"x": np.ones((2, 3), np.float32), "y": np.arange(2, dtype=np.int32)}] * 3
    )
    plain = fs.communication(algorithm, params, data)
    rule = fs.aggregation.uniform if name == "mifa" else fs.aggregation.selected
    for direction in ("up", "down"):
        for feeds_back in (False, True):
            case, codec = direction + " fed back" * feeds_back, {f"{direction}link": signs}
            try:
                wrapped = compressed(algorithm, **codec, error_feedback=feeds_back)
            except ValueError as error:
                refused[case] = str(error)
                continue
            state = fs.init(wrapped, params, data)
            cohort = fs.Cohort(jnp.array([1, 2], jnp.int32))
            round_fn = fs.make_round(wrapped, rule)
            new_state, _ = jax.eval_shape(round_fn, jax.random.key(0), state, data, cohort)
            assert jax.tree.structure(new_state) == jax.tree.structure(state)
            with_codec = fs.communication(wrapped, params, data)
            smaller = [x < y for x, y in zip(with_codec, plain, strict=True)]
            assert smaller == [direction == "down", direction == "up"]
    expected = REFUSED.get(name, {})
    if algorithm.client.probe is not None and name != "mime":
        expected = {"up fed back": PROBES} | expected
    assert refused.keys() == expected.keys()
    for case, words in expected.items():
        assert words in refused[case]


def test_what_cannot_be_sent_down_by_a_codec_is_refused(data):
    top_k, signs = compression.top_k(0.5), compression.sign()
    biased, random_k = compression.random_k(0.5, unbiased=False), compression.random_k(0.5)
    compressed(FEDAVG, biased, biased, error_feedback=True)
    for call, words in (
        (lambda: compressed(FEDAVG), "uplink or downlink must be a codec.*got None for both"),
        (lambda: compressed(FEDAVG, downlink=signs.encode), "downlink must be a codec"),
        (lambda: compressed(compressed(FEDAVG, downlink=signs), downlink=signs), "message_wire"),
        (lambda: compressed(FEDAVG, random_k, error_feedback=True), "uplink random_k.*would grow"),
        (lambda: compressed(FEDAVG, top_k, random_k, error_feedback=True), "with downlink random"),
        (lambda: fs.partial(compressed(FEDAVG, downlink=signs), "b"), "must not be compressed"),
        (lambda: fs.make_round(FEDAVG._replace(message_wire=8)), "message_wire must be a function"),
        (lambda: fs.make_round(FEDAVG._replace(to_all=1)), "to_all must be True or False; got 1"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
    algorithm = compressed(FEDAVG, downlink=signs)
    round_fn, cohort = fs.make_round(algorithm), fs.Cohort(jnp.array([1, 4], jnp.int32))
    state = fs.init(FEDAVG, zeros(), data)
    with pytest.raises(ValueError, match="state"):
        jax.eval_shape(round_fn, jax.random.key(0), state, data, cohort)
    bare = FEDAVG._replace(broadcast=lambda server, round: server.params)
    with pytest.raises(ValueError, match=r"`params` of its message.*its message is dict"):
        fs.init(compressed(bare, downlink=signs), zeros(), data)
