"""Private rounds beside NumPy: clips, caps and noise, what composes and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

import fedjax_sim as fs
from fedjax_sim.transforms.privacy.adaptive import WithBit
from fedjax_sim.transforms.privacy.mechanism import clipped
from tests.conftest import (
    MESH,
    SIZES,
    federation,
    flat,
    linear_loss,
    several_models,
    slow_after,
    zeros,
)
from tests.helpers.reference import gradient

LR, NEVER = 0.05, 1e30  # a clip that clips nothing
LOCAL = fs.LocalTraining(1, None, shuffle=False)
FEDAVG = fs.fedavg(linear_loss, optax.sgd(LR), LOCAL)
# Who is sent the model with which inclusion probability, and who reports; nobody in the third.
IDS = ((1, 4, 5), (4, 3, 1), (5, 1, 4), (0, 5, 7), (3, 4, 5))
REPORTS = ((1, 1, 1), (1, 1, 0), (0, 0, 0), (1, 1, 1), (1, 0, 1))
INCLUSION = 0.5


def cohorts():
    for ids, reports in zip(IDS, REPORTS, strict=True):
        inclusion = jnp.full(len(ids), INCLUSION)
        yield fs.Cohort(jnp.array(ids), reports=jnp.array(reports, bool), inclusion=inclusion)


def trained(algorithm, data, rule=fs.aggregation.unbiased, execution=None, key=0):
    execution = fs.execution.vmapped() if execution is None else execution
    round_fn = jax.jit(fs.make_round(algorithm, rule, execution))
    state = fs.init(algorithm, zeros(), data)
    states = [state]
    for cohort in cohorts():
        state, _ = round_fn(jax.random.key(key), state, data, cohort)
        states.append(state)
    return states


def shortened(d, clip):
    norm = np.linalg.norm(d)
    return d if norm <= clip else d * (clip / norm)


def numpy_trained(clients, expected, clip, share):
    """[w, b] after each round; `share(k)` is a_k / D."""
    v, models = np.zeros(5), []
    for ids, reports in zip(IDS, REPORTS, strict=True):
        total = np.zeros(5)
        for k in np.array(ids)[np.array(reports, bool)]:
            if SIZES[k]:
                weight = min(expected * share(k), 1)
                total += weight * shortened(-LR * gradient(v, *clients[k]), clip)
        v = v + total / expected
        models.append(v)
    return models


@pytest.mark.parametrize(
    ("rule", "expected", "clip"),
    [
        (fs.aggregation.unbiased, 3.0, 0.1),
        (fs.aggregation.all_clients, 6.0, 0.15),
        pytest.param(fs.aggregation.unbiased, 1.5, NEVER, marks=pytest.mark.slow),
    ],
)
def test_clipped_rounds_are_those_of_numpy(clients, data, rule, expected, clip):
    scale = INCLUSION if rule is fs.aggregation.unbiased else 1

    def share(k):
        return SIZES[k] / sum(SIZES) / scale

    shares = [expected * share(k) for k in (1, 3, 4, 5)]
    assert min(shares) < 1 < max(shares)
    states = trained(fs.privacy.central(FEDAVG, clip, 0.0, expected), data, rule)
    reference = numpy_trained(clients, expected, clip, share)
    for state, v in zip(states[1:], reference, strict=True):
        np.testing.assert_allclose(flat(state.params), v, atol=1e-6)
    other = numpy_trained(clients, expected, 2 * clip, share)[-1]
    if clip != NEVER:
        assert np.abs(other - reference[-1]).max() > 0.01


def test_with_neither_clip_nor_noise_it_is_fedavg(clients, data):
    """Over the fixed denominator: `all_clients` where no coefficient is above 1 / m; and where all
    clients weigh alike and m report, `uniform`."""
    algorithm = fs.privacy.central(FEDAVG, NEVER, 0.0, expected_cohort=1)
    rule = fs.aggregation.all_clients
    private, plain = trained(algorithm, data, rule)[-1], trained(FEDAVG, data, rule)[-1]
    np.testing.assert_allclose(flat(private.params), flat(plain.params), atol=1e-6)
    alike = federation(clients, [1.0] * len(clients))
    algorithm = fs.privacy.central(FEDAVG, NEVER, 0.0, expected_cohort=3)
    # Three of eight clients; of the first round all report.
    rule = fs.aggregation.unbiased
    cohort = next(cohorts())._replace(inclusion=jnp.full(3, 3 / 8))
    after = []
    for x, rule in ((algorithm, fs.aggregation.unbiased), (FEDAVG, fs.aggregation.uniform)):
        state = fs.init(x, zeros(), alike)
        state, _ = jax.jit(fs.make_round(x, rule))(jax.random.key(0), state, alike, cohort)
        after.append(flat(state.params))
    np.testing.assert_allclose(after[0], after[1], atol=1e-6)


def wide(size=20_000):
    """A federation of four clients, and an algorithm that moves nothing of its two large leaves."""
    data = fs.FederatedData.from_clients([np.ones((2, 1), np.float32)] * 4)
    params = {"a": np.zeros(size, np.float32), "b": np.zeros((2, size // 2), np.float32)}

    def loss_fn(params, batch, key):
        return batch[:, 0] * 0 + 0 * sum(jnp.sum(x) for x in jax.tree.leaves(params))

    return fs.fedavg(loss_fn, optax.sgd(1.0), LOCAL), params, data


def of_chi_square(noise, std):
    """The probability of a sum of squares as far from its mean as this one."""
    tail = stats.chi2.cdf(np.sum(np.square(noise / std)), noise.size)
    return 2 * min(tail, 1 - tail)


@pytest.mark.parametrize("nobody", [False, True])
def test_the_noise_is_of_its_standard_deviation(nobody):
    algorithm, params, data = wide()
    algorithm = fs.privacy.central(algorithm, clip=0.5, noise_multiplier=1.5, expected_cohort=3.0)
    cohort = fs.Cohort(jnp.arange(2), reports=jnp.full(2, not nobody), inclusion=jnp.ones(2))
    round_fn = jax.jit(fs.make_round(algorithm, fs.aggregation.unbiased))
    state = fs.init(algorithm, params, data)
    first, metrics = round_fn(jax.random.key(0), state, data, cohort)
    assert bool(metrics.empty) == nobody
    second, _ = round_fn(jax.random.key(0), first, data, cohort)
    noises = [
        first.params["a"],
        first.params["b"].ravel(),
        second.params["a"] - first.params["a"],
    ]
    for noise in np.array(noises, np.float64):
        assert of_chi_square(noise, 1.5 * 0.5 / 3) > 1e-3
        assert of_chi_square(noise, 1.01 * 1.5 * 0.5 / 2) < 1e-9
        assert stats.kstest(noise / 0.25, "norm").pvalue > 1e-3
    correlations = np.corrcoef(noises) - np.eye(3)
    assert np.abs(correlations).max() < 5 / np.sqrt(20_000)


def test_a_client_noises_its_own_update():
    """Two clients of four draw differently; the mean of both has half of one's variance."""
    algorithm, params, data = wide()
    algorithm = fs.privacy.local(algorithm, clip=0.5, noise_multiplier=2.0)
    rounds = {}
    for ids in ((0, 1), (0, 2), (1, 2)):
        state = fs.init(algorithm, params, data)
        round_fn = jax.jit(fs.make_round(algorithm, fs.aggregation.uniform))
        cohort = fs.Cohort(jnp.array(ids))
        rounds[ids] = np.asarray(round_fn(jax.random.key(0), state, data, cohort)[0].params["a"])
    for noise in rounds.values():
        assert of_chi_square(np.float64(noise), 2.0 * 0.5 / np.sqrt(2)) > 1e-3
    own = rounds[0, 1] + rounds[0, 2] - rounds[1, 2]  # client 0's, whoever comes beside it
    assert of_chi_square(np.float64(own), 2.0 * 0.5) > 1e-3


def numpy_adaptive(clients, expected, clip, rate, quantile):
    """Algorithm 1 of Andrew et al. without noise, over clients that weigh alike."""
    v, clips = np.zeros(5), [clip]
    for ids, reports in zip(IDS, REPORTS, strict=True):
        total, bits = np.zeros(5), 0.0
        for k in np.array(ids)[np.array(reports, bool)]:
            if SIZES[k]:
                d = -LR * gradient(v, *clients[k])
                total += shortened(d, clip)
                bits += (np.linalg.norm(d) <= clip) - 0.5
        v = v + total / expected
        clip = clip * np.exp(-rate * (bits / expected + 0.5 - quantile))
        clips.append(clip)
    return v, clips


def test_an_adaptive_clip_is_that_of_numpy(clients):
    alike = federation(clients, [1.0] * len(clients))
    expected = 8 * INCLUSION
    algorithm = fs.privacy.adaptive_clipping(
        FEDAVG, 0.0, expected, quantile=0.6, initial_clip=0.3, clip_lr=0.6, bit_noise=0.0
    )
    states = trained(algorithm, alike)
    v, clips = numpy_adaptive(clients, expected, 0.3, 0.6, 0.6)
    np.testing.assert_allclose([float(s.server.clip) for s in states], clips, rtol=1e-5)
    np.testing.assert_allclose(flat(states[-1].params), v, atol=1e-6)
    assert min(np.diff(clips)) < -0.01 < 0.01 < max(np.diff(clips))


def test_the_budget_of_an_adaptive_clip_is_split_as_in_the_paper():
    """z = 1.5 of both and 2 of the bits: `(1.5^-2 - (2 * 2)^-2)^(-1/2)` of the update."""
    algorithm, params, data = wide()
    algorithm = fs.privacy.adaptive_clipping(
        algorithm, 1.5, 3.0, initial_clip=0.5, clip_lr=0.2, bit_noise=2.0
    )
    cohort = fs.Cohort(jnp.arange(2), reports=jnp.zeros(2, bool), inclusion=jnp.ones(2))
    round_fn = fs.make_round(algorithm, fs.aggregation.unbiased)
    state = fs.init(algorithm, params, data)
    after, _ = jax.jit(round_fn)(jax.random.key(0), state, data, cohort)
    of_update = (1.5**-2 - 4.0**-2) ** -0.5
    noise = np.float64(after.params["a"])
    assert of_chi_square(noise, of_update * 0.5 / 3) > 1e-3
    assert of_chi_square(noise, 1.5 * 0.5 / 3) < 1e-9

    def bit(key):  # of 0.5, since there are none, less the quantile
        server = fs.privacy.adaptive_clipping(
            FEDAVG, 1.5, 3.0, initial_clip=0.5, clip_lr=0.2, bit_noise=2.0
        )
        state = fs.init(server, zeros(), federation([(np.ones((1, 4)), np.ones(1))] * 2))
        context = fs.RoundContext(
            jnp.int32(0), 2, jnp.int32(0), *jnp.zeros(2), key, *jnp.array([3.0, 0.0])
        )
        update = jax.tree.map(jnp.zeros_like, state.params)
        sent = WithBit(update, jnp.float32(0))
        return server.server_update(state.server, sent, (), context).clip

    keys = jax.random.split(jax.random.key(1), 4000)
    drawn = np.log(np.float64(jax.jit(jax.vmap(bit))(keys)) / 0.5) / -0.2
    assert of_chi_square(drawn, 2.0 / 3) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(
    "algorithm",
    [
        fs.privacy.central(FEDAVG, 0.1, 0.5, 3.0),
        fs.privacy.adaptive_clipping(FEDAVG, 0.5, 3.0, bit_noise=1.0),
        fs.privacy.local(FEDAVG, 0.1, 0.5),
    ],
    ids=["central", "adaptive", "local"],
)
def test_strategies_agree_and_seeds_do_not(data, algorithm):
    vmapped = trained(algorithm, data)[-1]
    for execution in (
        fs.execution.packed(2),
        fs.execution.sharded(MESH, fs.execution.packed(1)),
    ):
        other = trained(algorithm, data, execution=execution)[-1]
        np.testing.assert_allclose(flat(other.params), flat(vmapped.params), atol=1e-6)
    other = trained(algorithm, data, key=1)[-1]
    assert np.abs(flat(other.params) - flat(vmapped.params)).max() > 0.01


def test_clip_and_noise_are_swept_in_one_trace(data):
    traces = []

    def experiment(key, clip, noise_multiplier):
        traces.append(clip)
        algorithm = fs.privacy.central(FEDAVG, clip, noise_multiplier, 4.0)
        sampler, rule = fs.sampling.bernoulli(0.5), fs.aggregation.unbiased
        return fs.Experiment(algorithm, zeros(), data, sampler, 2, rule)

    @jax.jit
    def model(clip, z):
        return experiment(None, clip, z).run(jax.random.key(0))[0].params

    grid = [(clip, z) for clip in (0.05, 0.2) for z in (0.0, 0.5, 1.0)]
    clips, noises = jnp.array(grid).T
    together = flat(jax.jit(jax.vmap(lambda c, z: model(c, z)))(clips, noises))
    assert len(traces) == 1
    one_by_one = np.stack([flat(model(*pair)) for pair in grid])
    assert len(traces) <= 2
    np.testing.assert_allclose(together, one_by_one, atol=1e-6)
    assert len(np.unique(together[:, 0].round(6))) == len(grid)


def test_a_clip_holds_in_sixteen_bits_and_of_what_is_not_finite():
    rng = np.random.default_rng(0)
    for dtype in (jnp.bfloat16, jnp.float16, jnp.float32):
        for _ in range(20):
            update = {"a": jnp.asarray(rng.normal(size=33), dtype), "b": jnp.ones((), dtype)}
            shorter, is_within = clipped(update, 0.3)
            assert not is_within
            norm = np.sqrt(sum(np.sum(np.float64(x) ** 2) for x in shorter.values()))
            assert 0.29 < norm <= 0.3 * (1 + 1e-6)
            same, is_within = clipped(update, 100.0)
            assert is_within
            np.testing.assert_array_equal(same["a"], update["a"])
    for odd in (np.nan, np.inf, 3e38):
        bounded, is_within = clipped({"a": jnp.array([1.0, odd]), "b": jnp.ones(2)}, 0.3)
        assert not is_within
        np.testing.assert_array_equal(flat_of(bounded), 0)
    zero, is_within = clipped(jnp.zeros(3), 0.3)
    assert is_within
    np.testing.assert_array_equal(zero, 0)


def flat_of(tree):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


def test_the_server_is_told_nothing_that_was_counted():
    """Of three that report, whose weights are 0.3 in all, it is told of the four expected of 8."""
    told = []

    def server_update(server, update, total, context):
        told.append(context)
        return server

    algorithm = fs.privacy.central(FEDAVG._replace(server_update=server_update), 0.1, 0.0, 4.0)
    context = fs.RoundContext(
        round=jnp.int32(7),
        num_clients=8,
        num_reporting=jnp.int32(3),
        weight_sum=jnp.float32(0.3),
        reporting_share=jnp.float32(0.2),
        key=jax.random.key(0),
        denominator=jnp.float32(4),
        largest_weight=jnp.float32(0.25),
    )
    algorithm.server_update(FEDAVG.init(zeros()), zeros(), (), context)
    ((*numbers, _, denominator, largest),) = told
    assert [*map(float, numbers), denominator, largest] == [7, 8, 4, 4, 0.5, 4, 1]


def test_what_travels(data):
    private = fs.privacy.central(FEDAVG, 1.0, 1.0, 3)
    assert fs.communication(private, zeros(), data) == (20, 20)
    adaptive = fs.privacy.adaptive_clipping(FEDAVG, 0.1, 3)
    assert fs.communication(adaptive, zeros(), data) == (24, 24)
    assert fs.communication(fs.privacy.local(FEDAVG, 1.0, 1.0), zeros(), data) == (20, 20)
    half = fs.compression.compressed(FEDAVG, fs.compression.top_k(0.5))
    assert fs.communication(fs.privacy.central(half, 1.0, 1.0, 3), zeros(), data).up == 24
    assert fs.communication(fs.privacy.adaptive_clipping(half, 0.1, 3), zeros(), data).up == 28
    # Of 4 + 1 numbers levels of 8 bits and 2 x 2 numbers, and beside them the clip.
    down = fs.compression.compressed(FEDAVG, downlink=fs.compression.quantise(8))
    adaptive = fs.privacy.adaptive_clipping(down, 0.1, 3)
    assert fs.communication(adaptive, zeros(), data) == (5 + 16 + 4, 24)


OTHERS = {
    "compressed": fs.compression.compressed(FEDAVG, fs.compression.top_k(0.5), error_feedback=True),
    "partial": fs.partial(FEDAVG, "b"),
    "ditto": fs.ditto(linear_loss, optax.sgd(LR), LOCAL, lam=0.1),
    "fedsgd": fs.fedsgd(linear_loss, optax.sgd(LR)),
    "fedadam": fs.fedadam(linear_loss, optax.sgd(LR), LOCAL),
    "fedprox": fs.fedprox(linear_loss, optax.sgd(LR), LOCAL, mu=0.1),
}


@pytest.mark.parametrize("name", slow_after(1, OTHERS))
def test_what_composes_is_itself_without_clip_and_noise(data, name):
    """Its models, and what its clients keep; no coefficient is above 1 / m."""
    algorithm, rule = OTHERS[name], fs.aggregation.all_clients
    plain = trained(algorithm, data, rule)[2]  # before nobody reports, when momenta move on
    adaptive = fs.privacy.adaptive_clipping(algorithm, 0.0, 1.0, initial_clip=NEVER, bit_noise=0.0)
    privates = [adaptive, fs.privacy.central(algorithm, NEVER, 0.0, 1.0)]
    for private in privates[: 1 if name == "compressed" else 2]:
        state = trained(private, data, rule)[2]
        for x, y in zip(
            jax.tree.leaves((state.params, state.clients)),
            jax.tree.leaves((plain.params, plain.clients)),
            strict=True,
        ):
            np.testing.assert_allclose(x, y, atol=1e-6)
        if algorithm.personal is not None:
            own = fs.personal_params(private, state)
            expected = flat(fs.personal_params(algorithm, plain))
            np.testing.assert_allclose(flat(own), expected, atol=1e-6)


@pytest.mark.slow
def test_noised_updates_may_be_combined_and_compressed(data):
    local = fs.privacy.local(FEDAVG, 0.1, 0.5)
    after = trained(local, data, fs.aggregation.median())[-1]
    assert np.isfinite(flat(after.params)).all()
    sent = fs.compression.compressed(local, fs.compression.top_k(1.0))
    np.testing.assert_allclose(
        flat(trained(sent, data)[-1].params), flat(trained(local, data)[-1].params), atol=1e-6
    )


@pytest.mark.slow
def test_a_run_of_it_resumes(data, tmp_path):
    algorithm = fs.privacy.adaptive_clipping(FEDAVG, 0.5, 4.0, bit_noise=1.0)
    experiment = fs.Experiment(
        algorithm, zeros(), data, fs.sampling.bernoulli(0.5), 4, fs.aggregation.unbiased
    )
    whole = fs.simulate(experiment, 0)
    fs.simulate(experiment._replace(num_rounds=2), 0, out=tmp_path)
    resumed = fs.simulate(experiment, 0, out=tmp_path, resume=True)
    np.testing.assert_array_equal(flat(resumed.state.params), flat(whole.state.params))
    assert resumed.state.server.clip == whole.state.server.clip


SCAFFOLD = fs.scaffold(linear_loss, LR, LOCAL)


@pytest.mark.parametrize(
    ("algorithm", "words"),
    [
        (fs.fedavg, "the function fedavg itself: call it"),
        ("fedavg", "algorithm must be made by fs.fedavg or a sibling"),
        (SCAFFOLD, "sends a total beside it, as SCAFFOLD"),
        (fs.feddyn(linear_loss, optax.sgd(LR), LOCAL, 0.1), "sends a total beside it"),
        (fs.mifa(linear_loss, optax.sgd(LR), LOCAL), "sends a total beside it"),
        (fs.fednova(linear_loss, LR, LOCAL), "nothing else .* sends NormalisedUpdate"),
        (fs.fedexp(linear_loss, optax.sgd(LR), LOCAL), "nothing else .* sends WithShare"),
        (fs.mime(linear_loss, LR, LOCAL), "one exchange in a round .* got one of 2"),
        (fs.privacy.central(FEDAVG, 1.0, 1.0, 3), "private already"),
    ],
)
def test_what_cannot_be_private_is_refused_when_built(algorithm, words):
    for make in (
        lambda: fs.privacy.central(algorithm, 1.0, 1.0, 3),
        lambda: fs.privacy.adaptive_clipping(algorithm, 0.1, 3),
        lambda: fs.privacy.local(algorithm, 1.0, 1.0),
    ):
        with pytest.raises(ValueError, match=words):
            make()


@pytest.mark.parametrize(
    ("algorithm", "words"),
    [
        (fs.qfedavg(linear_loss, LR, LOCAL, 1.0), "sends FairUpdate"),
        (fs.afl(linear_loss, LR, LOCAL, 0.1), "sends WithShare"),
        (fs.mimelite(linear_loss, LR, LOCAL), "sends tuple"),
        (fs.scaffold(linear_loss, LR, LOCAL, option=1), "sends a total beside it"),
    ],
)
def test_what_shows_with_a_model_is_refused_by_init(data, algorithm, words):
    private = fs.privacy.central(algorithm, 1.0, 1.0, 3)
    with pytest.raises(ValueError, match=words):
        fs.init(private, zeros(), data)


def test_several_models_are_refused_by_init(data):
    ifca = fs.ifca(linear_loss, optax.sgd(LR), LOCAL, num_models=2)
    for private in (fs.privacy.central(ifca, 1.0, 1.0, 3), fs.privacy.local(ifca, 1.0, 1.0)):
        with pytest.raises(ValueError, match="sends ClusterUpdate"):
            fs.init(private, several_models(), data)


def test_rules_and_wrappers_that_break_the_bound_are_refused():
    private = fs.privacy.central(FEDAVG, 1.0, 1.0, 3)
    for rule in (fs.aggregation.selected, fs.aggregation.uniform):
        with pytest.raises(ValueError, match="divides by the weight of those that report"):
            fs.make_round(private, rule)
    with pytest.raises(ValueError, match="may move by more than a client's clip"):
        fs.make_round(private, fs.aggregation.median())
    with pytest.raises(ValueError, match="be private, whose clip a codec may undo"):
        fs.compression.compressed(private, fs.compression.top_k(0.5))
    half = fs.compression.compressed(FEDAVG, fs.compression.top_k(0.5))
    with pytest.raises(ValueError, match="compress the result"):
        fs.privacy.local(half, 1.0, 1.0)
    noised = fs.privacy.local(FEDAVG, 1.0, 1.0)
    with pytest.raises(ValueError, match="would draw the same numbers once more"):
        fs.privacy.local(noised, 1.0, 1.0)
    fs.privacy.central(noised, 1.0, 1.0, 3)  # whose server draws others


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: fs.privacy.central(FEDAVG, 0, 1.0, 3), "clip must be .*positive; got 0"),
        (lambda: fs.privacy.central(FEDAVG, 1.0, -1, 3), "noise_multiplier .* at least 0; got -1"),
        (lambda: fs.privacy.central(FEDAVG, 1.0, 1.0, 0), "expected_cohort .* positive; got 0"),
        (lambda: fs.privacy.local(FEDAVG, float("nan"), 1.0), "clip must be finite"),
        (lambda: fs.privacy.adaptive_clipping(FEDAVG, 1, 30, 1.0), r"quantile .* in \(0, 1\)"),
        (lambda: fs.privacy.adaptive_clipping(FEDAVG, 1, 30, initial_clip=0), "initial_clip must"),
        (lambda: fs.privacy.adaptive_clipping(FEDAVG, 1, 30, clip_lr=-1), "clip_lr must"),
        (
            lambda: fs.privacy.adaptive_clipping(FEDAVG, 1.0, 30, bit_noise=0.5),
            "bit_noise must be above noise_multiplier / 2 = 0.5.*got 0.5$",
        ),
        (
            lambda: fs.privacy.adaptive_clipping(FEDAVG, 1.0, 8),
            "bit_noise must be above .*got 0.4, expected_cohort / 20",
        ),
    ],
)
def test_numbers_out_of_range_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
