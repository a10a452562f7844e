"""Compressed uplinks: bytes by hand, rounds beside NumPy, what is held back, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from fedjax_sim.transforms.compression.uplink import WithResidual
from tests.conftest import MESH, SIZES, flat, linear_loss, several_models, zeros
from tests.helpers.reference import gradient

LR = 0.05
LOCAL = fs.LocalTraining(1, None, shuffle=False)
FEDAVG = fs.fedavg(linear_loss, optax.sgd(LR), LOCAL)
ROUNDS = 10
# The last client of a cohort drops out of every third round.
COHORTS = (((1, 4, 5), (4, 5, 1), (5, 1, 4), (7, 5, 6)) * 3)[:ROUNDS]
REPORTS = tuple((True, True, n % 3 != 1) for n in range(ROUNDS))


def cohorts():
    for ids, reports in zip(COHORTS, REPORTS, strict=True):
        yield fs.Cohort(jnp.array(ids, jnp.int32), reports=jnp.array(reports))


def after_ten(algorithm, data, execution=None):
    execution = fs.execution.vmapped() if execution is None else execution
    round_fn = jax.jit(fs.make_round(algorithm, execution=execution))
    state = fs.init(algorithm, zeros(), data)
    for cohort in cohorts():
        state, metrics = round_fn(jax.random.key(0), state, data, cohort)
    return state, metrics


def numpy_after_ten(clients, error_feedback):
    """[w, b] and residuals [K, 5]: of w the two largest of four travel, and b, which is one."""
    v, residuals = np.zeros(5), np.zeros((len(SIZES), 5))
    for ids, reports in zip(COHORTS, REPORTS, strict=True):
        total, weight = np.zeros(5), 0
        for k in np.array(ids)[list(reports)]:
            owed = -LR * gradient(v, *clients[k])
            if error_feedback:
                owed += residuals[k]
            sent = owed.copy()
            sent[np.argsort(np.abs(owed[:4]))[:2]] = 0
            residuals[k] = owed - sent
            total, weight = total + SIZES[k] * sent, weight + SIZES[k]
        v = v + total / weight
    return v, residuals


def test_bytes_are_those_of_values_and_indices(data):
    def up(algorithm, share, params=None):
        algorithm = fs.compression.compressed(algorithm, fs.compression.top_k(share))
        down, up = fs.communication(algorithm, zeros() if params is None else params, data)
        assert down == 20 * (2 if algorithm.init_client(zeros()) else 1)
        return up

    assert up(FEDAVG, 0.5) == 2 * (4 + 4) + 1 * (4 + 4)
    assert up(FEDAVG, 0.51) == 3 * (4 + 4) + 1 * (4 + 4)
    assert up(FEDAVG, 1e-9) == 1 * (4 + 4) + 1 * (4 + 4)
    assert up(FEDAVG, 1) == 4 * (4 + 4) + 1 * (4 + 4)
    # SCAFFOLD's change of the control variate travels as it is.
    assert up(fs.scaffold(linear_loss, LR, LOCAL), 0.5) == 3 * (4 + 4) + 5 * 4


def test_values_keep_their_dtype_and_shares_are_decimal_numbers():
    update = {"w": jnp.arange(100.0).reshape(20, 5).astype(jnp.bfloat16), "none": jnp.zeros((0, 2))}
    codec = fs.compression.top_k(0.07)
    wire, _ = jax.eval_shape(codec.encode, update, codec.init(update), jax.random.key(0))
    assert wire["w"].values.shape == wire["w"].indices.shape == (7,)
    assert (wire["w"].values.dtype, wire["w"].indices.dtype) == (jnp.bfloat16, jnp.int32)
    assert wire["none"].values.shape == (0,)
    decoded = jax.eval_shape(codec.decode, wire)
    assert (decoded["w"].shape, decoded["w"].dtype) == ((20, 5), jnp.bfloat16)


def test_bits_below_a_byte_are_rounded_up_once(data):
    """The signs of five numbers in two leaves, with a scale of 32 bits each: 69 bits."""
    signs = fs.compression.Codec(
        init=lambda update: (),
        encode=lambda update, residual, key: (update, residual),
        decode=lambda wire: wire,
        bits=lambda update: sum(x.size + 32 for x in jax.tree.leaves(update)),
    )
    assert fs.communication(fs.compression.compressed(FEDAVG, signs), zeros(), data).up == 9
    scaffold = fs.compression.compressed(fs.scaffold(linear_loss, LR, LOCAL), signs)
    assert fs.communication(scaffold, zeros(), data).up == 9 + 20


@pytest.mark.parametrize("error_feedback", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_all_entries_are_the_simpler_self(data, error_feedback):
    everything = fs.compression.top_k(1.0)
    algorithm = fs.compression.compressed(FEDAVG, everything, error_feedback=error_feedback)
    (plain, metrics), (state, its_metrics) = (after_ten(x, data) for x in (FEDAVG, algorithm))
    # To rounding, since the compiler fuses the two programs in different ways.
    np.testing.assert_allclose(flat(state.params), flat(plain.params), rtol=2e-6, atol=1e-7)
    np.testing.assert_allclose(its_metrics.update_norm, metrics.update_norm, rtol=2e-6)
    for x in jax.tree.leaves(state.clients):
        assert not np.asarray(x).any()


@pytest.mark.parametrize(
    ("error_feedback", "execution"),
    [
        (False, fs.execution.packed(2)),
        (True, fs.execution.vmapped()),
        pytest.param(True, fs.execution.packed(2), marks=pytest.mark.slow),
        pytest.param(True, fs.execution.sharded(MESH), marks=pytest.mark.slow),
    ],
)
def test_rounds_are_those_of_numpy(clients, data, error_feedback, execution):
    codec = fs.compression.top_k(0.5)
    algorithm = fs.compression.compressed(FEDAVG, codec, error_feedback=error_feedback)
    state, _ = after_ten(algorithm, data, execution)
    v, residuals = numpy_after_ten(clients, error_feedback)
    np.testing.assert_allclose(flat(state.params), v, atol=1e-6)
    assert bool(jax.tree.leaves(state.clients)) == error_feedback
    if error_feedback:
        kept = state.clients.residual
        np.testing.assert_allclose(kept["w"], residuals[:, :4], atol=1e-6)
        np.testing.assert_array_equal(kept["b"], 0)
        assert np.abs(residuals[1]).max() > 0.01
    other, _ = numpy_after_ten(clients, not error_feedback)
    assert np.abs(other - v).max() > 0.001


def test_what_was_sent_and_what_is_held_back_are_all_updates():
    """In whole numbers, which floats add up exactly; a NaN or an infinity is sent and gone."""
    codec = fs.compression.top_k(0.3)
    updates = np.random.default_rng(0).integers(-99, 99, (6, 11)).astype(np.float32)
    sent, residual = np.zeros(11), codec.init(jnp.zeros(11))
    for update in updates:
        wire, residual = codec.encode(jnp.asarray(update), residual, None)
        assert len(set(wire.indices.tolist())) == 4
        sent += np.asarray(codec.decode(wire))
    assert np.any(residual)
    np.testing.assert_array_equal(sent + residual, updates.sum(0))
    for odd in (np.nan, np.inf):
        wire, rest = codec.encode(jnp.zeros(11).at[7].set(odd), codec.init(jnp.zeros(11)), None)
        assert 7 in wire.indices
        np.testing.assert_array_equal(rest, 0)


def test_a_codec_draws_from_a_stream_of_its_own():
    """It is given neither the key of the algorithm's `finish` nor one that is always the same."""
    given = []

    def encode(update, residual, key):
        given.append(key)
        return update, residual

    def finish(carry, message, client_state, num_examples, num_steps, key):
        return fs.ClientOutput(carry)

    algorithm = FEDAVG._replace(client=FEDAVG.client._replace(finish=finish))
    codec = fs.compression.Codec(lambda update: (), encode, lambda wire: wire)
    compressed = fs.compression.compressed(algorithm, codec)
    keys = jax.random.split(jax.random.key(0), 2)
    for key in keys:
        compressed.client.finish(jnp.float32(1), (), (), 1, 1, key)
    assert len({jax.random.key_data(key).tobytes() for key in (*keys, *given)}) == 4
    # Nor one that `finish` gets where it splits its own, as for noise on every leaf.
    split = jax.random.key_data(jax.random.split(keys[0], 64)).tolist()
    assert jax.random.key_data(given[0]).tolist() not in split


def test_personal_models_and_states_are_still_the_algorithms_own():
    ifca = fs.ifca(linear_loss, optax.sgd(LR), LOCAL, num_models=2)
    wrapped = fs.compression.compressed(ifca, downlink=fs.compression.top_k(0.5))
    probed = jnp.array([2.0, 1.0])
    own, expected = (x.personal(x.init(several_models()), (), probed) for x in (wrapped, ifca))
    np.testing.assert_array_equal(flat(own), flat(expected))
    fedsgd = fs.fedsgd(linear_loss, optax.sgd(LR))
    wrapped = fs.compression.compressed(fedsgd, fs.compression.top_k(0.5))
    assert wrapped.exchanges[-1].pooled_gradient is None  # each client's own must be seen
    scaffold = fs.scaffold(linear_loss, LR, LOCAL)
    wrapped = fs.compression.compressed(scaffold, fs.compression.top_k(0.5), error_feedback=True)
    kept = wrapped.init_client(zeros())
    assert isinstance(kept, WithResidual)
    assert jax.tree.structure(kept.own) == jax.tree.structure(scaffold.init_client(zeros()))


@pytest.mark.parametrize("share", [0, -0.1, 1.5, float("nan"), True, "0.1", jnp.float32(0.5)])
def test_shares_that_are_none_are_refused(share):
    with pytest.raises(ValueError, match=r"share must be a Python number in \(0, 1\].*; got"):
        fs.compression.top_k(share)


def test_what_cannot_be_compressed_is_refused(data):
    codec = fs.compression.top_k(0.5)
    ifca = fs.ifca(linear_loss, optax.sgd(LR), LOCAL, num_models=2)
    for arguments, words in (
        ((fs.fedavg, codec), "algorithm must be made by fs.fedavg or a sibling"),
        ((FEDAVG, "top_k"), "uplink must be a codec.*got 'top_k'"),
        ((FEDAVG, fs.compression.top_k), "the function top_k itself: call it"),
        ((FEDAVG, codec, None, 1), "error_feedback must be True or False; got 1"),
        ((fs.mime(linear_loss, LR, LOCAL), codec), "one exchange in a round.*got one of 2"),
        ((fs.compression.compressed(FEDAVG, codec), codec), "compressed already"),
        ((fs.afl(linear_loss, LR, LOCAL, 0.1), codec, None, True), "clients probe"),
        # Half of a choice, or its signs, would move models that nobody has chosen.
        ((ifca, codec), "IFCA one model of several"),
        ((fs.privacy.central(FEDAVG, 1.0, 1.0, 3), codec), "be private, whose clip a codec may"),
    ):
        with pytest.raises(ValueError, match=words):
            fs.compression.compressed(*arguments)


def test_baselines_send_nothing_and_refuse_it(data):
    algorithm = fs.compression.compressed(FEDAVG, fs.compression.top_k(0.5))
    experiment = fs.Experiment(algorithm, zeros(), data, fs.sampling.uniform(2), 1)
    for baseline in (fs.baselines.centralised, fs.baselines.local_only):
        with pytest.raises(ValueError, match="must not be compressed"):
            baseline(experiment)


def test_a_codec_or_wire_that_does_not_fit_is_refused(data):
    codec = fs.compression.top_k(0.5)
    key, cohort = jax.random.key(0), next(cohorts())
    state = fs.init(FEDAVG, zeros(), data)
    forgetful = codec._replace(decode=lambda wire: wire)
    round_fn = fs.make_round(fs.compression.compressed(FEDAVG, forgetful))
    with pytest.raises(ValueError, match=r"uplink\.decode must keep .* the update"):
        jax.eval_shape(round_fn, key, state, data, cohort)
    round_fn = fs.make_round(fs.compression.compressed(FEDAVG, codec, error_feedback=True))
    with pytest.raises(ValueError, match="its clients hold no residual"):
        jax.eval_shape(round_fn, key, state, data, cohort)
    with pytest.raises(ValueError, match="wire must be a function, or None; got 8"):
        fs.make_round(FEDAVG._replace(wire=8))
    for wire in (7.5, -8, "bits"):
        half = FEDAVG._replace(wire=lambda update, total, wire=wire: wire)
        with pytest.raises(ValueError, match="wire must return arrays or their shapes, or a whole"):
            fs.communication(half, zeros(), data)
