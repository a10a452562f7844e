"""Runs on a source that is read while they train: the bits of the federation in memory."""

import signal
import threading
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from fedjax_sim.host.planning import Cohorts
from tests.conftest import MESH, SIZES, linear_loss, zeros

ROUNDS, KEY = 12, jax.random.key(5)
CAPACITY = 34  # the largest cohort of `uniform(3)` with this key has 33 examples
STRATEGIES = {
    "vmapped": fs.execution.vmapped(),
    "packed": fs.execution.packed(2),
    "sharded": fs.execution.sharded(MESH, fs.execution.packed(2)),
}
ALGORITHMS = {
    "fedavg": lambda: fs.fedavg(linear_loss, optax.sgd(0.05), fs.LocalTraining(2, 4)),
    # Full batches, padded to one of a few sizes of the whole federation; and client state.
    "scaffold": lambda: fs.scaffold(linear_loss, 0.05, fs.LocalTraining(2, None)),
    "fedsgd": lambda: fs.fedsgd(linear_loss, optax.sgd(0.05)),
}


def experiment(data, name="fedavg", strategy="packed", **parts):
    given = fs.Experiment(
        ALGORITHMS[name](),
        zeros(),
        data,
        fs.sampling.uniform(3),
        ROUNDS,
        # What it divides by is a constant of the program, which XLA rounds otherwise.
        fs.aggregation.unbiased,
        STRATEGIES[strategy],
        evaluate=lambda params: {"norm": jnp.linalg.norm(params["w"])},
        evaluate_every=5,
    )
    return given._replace(**parts)


@pytest.fixture(scope="module")
def whole(data):
    return fs.simulate(experiment(data), KEY)


def same(a, b):
    pairs = zip(
        jax.tree.leaves((a.state, a.history)),
        jax.tree.leaves((b.state, b.history)),
        strict=True,
    )
    for x, y in pairs:
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def reading(data, told=lambda ids: None):
    """A source that tells what it is asked for."""
    source = fs.data.Source.of(data)
    read = source.read

    def tell(ids):
        told(ids)
        return read(ids)

    return replace(source, read=tell)


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert not [x for x in threading.enumerate() if x.name == "fedjax-sim-window"]


@pytest.mark.parametrize(
    ("capacity", "every"), [(CAPACITY, None), (CAPACITY, 5), pytest.param(None, 1)]
)
def test_it_has_the_bits_of_the_federation_in_memory(data, whole, tmp_path, capacity, every):
    asked = []
    source = reading(data, asked.append)
    out = None if every is None else tmp_path
    run = fs.simulate(experiment(source), KEY, out=out, checkpoint_every=every, capacity=capacity)
    same(run, whole)
    # Beside the three clients that are looked at before: a window, or several of a few rounds.
    assert len(asked) - 3 == 1 if capacity is None else len(asked) > 6
    for ids in asked:
        assert (np.diff(ids) > 0).all()
        assert sum(SIZES[k] for k in ids) <= (capacity or sum(SIZES))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "strategy", "sampler"),
    [
        ("fedavg", "vmapped", fs.sampling.weighted(2)),
        ("fedavg", "sharded", fs.sampling.bernoulli(0.2)),
        ("scaffold", "packed", fs.sampling.bernoulli(0.2)),
        ("scaffold", "sharded", fs.sampling.uniform(3)),
        ("fedsgd", "vmapped", fs.sampling.bernoulli(0.2)),
        ("fedsgd", "packed", fs.sampling.weighted(2)),
    ],
)
def test_every_algorithm_strategy_and_sampler_has_the_bits(data, name, strategy, sampler):
    given = experiment(data, name, strategy, sampler=sampler)
    kept = {"keep_model": "best", "metric": "train_loss"}
    in_memory = fs.simulate(given, KEY, **kept)
    run = fs.simulate(given._replace(data=fs.data.Source.of(data)), KEY, **kept, capacity=50)
    same(run, in_memory)
    assert run.best.value == in_memory.best.value


def test_vmapped_client_states_have_the_bits(data):
    given = experiment(data, "scaffold", "vmapped")
    source = fs.data.Source.of(data)
    same(fs.simulate(given._replace(data=source), KEY, capacity=CAPACITY), fs.simulate(given, KEY))


def interrupting_after(rounds):
    def on_progress(progress):
        if progress.round == rounds:
            signal.raise_signal(signal.SIGTERM)

    return on_progress


def test_an_interrupted_run_goes_on_to_the_same_bits(data, whole, tmp_path):
    given = experiment(fs.data.Source.of(data))
    part = fs.simulate(
        given,
        KEY,
        out=tmp_path,
        checkpoint_every=1,
        on_progress=interrupting_after(5),
        capacity=CAPACITY,
    )
    assert (part.status, int(part.state.round)) == ("interrupted", 5)
    # No bit depends on where windows begin and end.
    same(fs.simulate(given, KEY, out=tmp_path, resume=True, capacity=CAPACITY + 6), whole)


def test_a_read_that_fails_loses_nothing(data, whole, tmp_path):
    asked = []

    def tell(ids):
        asked.append(ids)
        if len(asked) == 6:
            raise OSError("the disk is gone")

    with pytest.raises(fs.InterruptedRun, match=r"inputs of round \d+ were not read: OSErr") as e:
        fs.simulate(experiment(reading(data, tell)), KEY, out=tmp_path, capacity=CAPACITY)
    assert isinstance(e.value.__cause__, OSError)
    done = int(e.value.partial.state.round)
    assert 2 <= done < ROUNDS
    assert e.value.__notes__ == [f"{done} rounds are saved in {tmp_path}, to be resumed"]
    again = experiment(fs.data.Source.of(data))
    same(fs.simulate(again, KEY, out=tmp_path, resume=True, capacity=CAPACITY), whole)


def test_a_signal_ends_a_wait_for_a_read(data):
    """Whoever reads may take long, and who interrupts does not wait for more than that read."""
    asked, release = [], threading.Event()

    def tell(ids):
        asked.append(ids)
        if len(asked) == 6:
            signal.raise_signal(signal.SIGINT)  # which the main thread handles
            release.wait(0.5)

    part = fs.simulate(experiment(reading(data, tell)), KEY, capacity=CAPACITY)
    assert part.status == "interrupted"
    assert len(asked) == 6
    assert len(part.history.evaluated) == int(part.state.round) < ROUNDS


def test_the_next_window_is_read_while_this_one_is_trained_on(data, whole):
    """The second window is read once the first round is told: in turn, neither would come."""
    asked, told = [], threading.Event()

    def tell(ids):
        asked.append(ids)
        if len(asked) == 5:
            assert told.wait(60)

    run = fs.simulate(
        experiment(reading(data, tell)), KEY, on_progress=lambda now: told.set(), capacity=CAPACITY
    )
    same(run, whole)


def test_a_criterion_and_a_writer_that_fails_end_the_thread(data):
    given = experiment(fs.data.Source.of(data), evaluate_every=1)
    run = fs.simulate(given, KEY, stop=lambda history: history.evaluated, capacity=CAPACITY)
    assert (run.status, int(run.state.round)) == ("stopped", 1)

    def fail(progress):
        raise ConnectionError("nobody listens")

    with pytest.raises(fs.InterruptedRun, match="a round was not told of"):
        fs.simulate(given, KEY, on_progress=fail, capacity=CAPACITY)


def test_rounds_of_nobody_read_nothing(data):
    def tell(ids):
        assert len(ids)

    def sample(key, round, data):
        """Clients 2, who has no example, and 3, who has one, but for the first three rounds."""
        return fs.Cohort(jnp.array([2, 3]), jnp.full(2, round > 2), None, jnp.ones(2))

    sampler = fs.sampling.Sampler(2, with_replacement=False, sample=sample)
    given = experiment(reading(data, tell), sampler=sampler, num_rounds=4)
    run = fs.simulate(given, KEY, capacity=1)
    assert run.history.rounds.reporting.tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize("sampler", [fs.sampling.uniform(3), fs.sampling.with_replacement(4)])
def test_windows_are_planned_as_long_as_they_can_be(data, sampler):
    rounds = 700
    cohorts = Cohorts(sampler, KEY, data, rounds)
    drawn = jax.jit(lambda round: sampler.sample(KEY, round, data).client_ids)
    needs = [{int(k) for k in drawn(i)} for i in range(rounds)]
    rows = [sum(SIZES[k] for k in ids) for ids in needs]
    assert cohorts.largest_round() == (int(np.argmax(rows)), max(rows))
    capacity = max(rows) + 2
    for first in (0, 500):  # a run begins anew where it is resumed
        while first < rounds:
            planned = cohorts.plan(first, capacity)
            together = set().union(*needs[first : planned.end])
            assert planned.client_ids.tolist() == sorted(together)
            assert planned.num_examples == sum(SIZES[k] for k in together) <= capacity
            if planned.end < rounds:
                assert sum(SIZES[k] for k in together | needs[planned.end]) > capacity
            assert planned.first == first < planned.end
            first = planned.end
        assert first == rounds


def test_labels_are_looked_at_in_every_window():
    model = fs.models.logistic_regression((4,), num_classes=3)
    loss_fn = fs.models.cross_entropy(model.apply)
    rng = np.random.default_rng(0)
    clients = [
        {"x": rng.normal(size=(2, 4)).astype(np.float32), "y": np.array([k % 3, 1])}
        for k in range(7)
    ]
    good = fs.FederatedData.from_clients(clients)

    def given(wrong):
        examples = [
            *clients[:wrong],
            {**clients[wrong], "y": np.array([0, 3])},
            *clients[wrong + 1 :],
        ]
        source = fs.data.Source.of(fs.FederatedData.from_clients(examples))
        algorithm = fs.fedavg(loss_fn, optax.sgd(0.1), fs.LocalTraining())
        return fs.Experiment(algorithm, model.init, source, fs.sampling.uniform(2), ROUNDS)

    message = r'labels \("y"\) must lie in \[0, 3\)'
    assert good.num_clients == 7
    with pytest.raises(ValueError, match=message):  # one of the three that are looked at first
        fs.simulate(given(3), KEY)
    with pytest.raises(fs.InterruptedRun, match=message):
        fs.simulate(given(2), KEY, capacity=6)


def looking_at_examples(key, data):
    return fs.Cohort(jnp.argsort(data.examples["y"])[:3])


def asking_for_examples(key, data):
    return fs.Cohort(np.argsort(np.asarray(data.examples["y"]))[:3])


def test_refusals(data):
    source = fs.data.Source.of(data)
    given = experiment(source)

    def refused(message, call, *args, **named):
        with pytest.raises(ValueError, match=message):
            call(*args, **named)

    for draw, reason in (
        (looking_at_examples, "it looks at the examples"),
        (asking_for_examples, "it asks for values that are not there"),
    ):
        sampler = fs.sampling.custom(3, draw)
        message = f"sampler must draw from the key, .* a Source, because .*; {reason}"
        refused(message, fs.simulate, given._replace(sampler=sampler), KEY)
    refused(
        r"capacity must hold the cohort of each round: that of round 5 has 33 examples; got 32",
        fs.simulate,
        given,
        KEY,
        capacity=32,
    )
    refused(
        "capacity must be a whole number, at least 1, or None", fs.simulate, given, KEY, capacity=0
    )
    refused("capacity must be at most 2147483647", fs.simulate, given, KEY, capacity=2**31)
    refused(
        "capacity is of an experiment whose data is an fs.data.Source; got 9",
        fs.simulate,
        experiment(data),
        KEY,
        capacity=9,
    )
    in_memory = "data must be an fs.FederatedData, with its examples in memory; got a Source"
    refused(in_memory, given.run, KEY)
    refused(f"experiment.{in_memory}", fs.baselines.centralised, given)
    refused(
        "m must be at most K = 8", fs.simulate, given._replace(sampler=fs.sampling.uniform(9)), 0
    )
    refused("identity must be a text, or None; got 3", replace, source, identity=3)


@pytest.mark.slow
def test_a_resume_refuses_another_source_as_far_as_it_is_known(data, tmp_path):
    source = replace(fs.data.Source.of(data), identity="first")
    given = experiment(source, num_rounds=2)
    fs.simulate(given, KEY, out=tmp_path)
    read = source.read

    def scaled(ids):
        return [jax.tree.map(lambda x: 2 * x, some) for some in read(ids)]

    sizes = np.array(SIZES)
    for change, reason in (
        ({"identity": "second"}, 'federation.identity is "first" there and "second" here'),
        ({"read": scaled}, "federation.examples_of_three is"),
        ({"weights": sizes + 1}, "federation.client_weights is"),
        ({"client_names": list("abcdefgh")}, "federation.client_names is null there"),
    ):
        with pytest.raises(ValueError, match=f"holds another experiment.*{reason}"):
            fs.simulate(
                given._replace(data=replace(source, **change)), KEY, out=tmp_path, resume=True
            )
    with pytest.raises(ValueError, match=r"holds another experiment.*federation is"):
        fs.simulate(experiment(data, num_rounds=2), KEY, out=tmp_path, resume=True)
    back = fs.simulate(given._replace(data=replace(source)), KEY, out=tmp_path, resume=True)
    assert back.status == "finished"


def test_a_cohort_that_was_not_planned_is_told(data):
    """A sampler that draws otherwise wherever it is traced, as none should."""
    traces = []

    def draw(key, data):
        traces.append(1)
        return fs.Cohort(jnp.array([len(traces), 0]))

    given = experiment(
        fs.data.Source.of(data),
        sampler=fs.sampling.custom(2, draw),
        aggregation=fs.aggregation.selected,
        num_rounds=2,
    )
    with pytest.raises(ValueError, match="sampler must draw the same cohort of a key and a round"):
        fs.simulate(given, KEY, capacity=40)


@pytest.mark.slow
def test_windows_are_of_the_type_that_jax_keeps(data):
    """Doubles are read, as NumPy has them, and floats are trained on, as in memory."""
    whole = fs.FederatedData.from_clients([np.linspace(0, k, 3) for k in range(4)])
    assert jax.tree.leaves(whole.examples)[0].dtype == np.float32

    def read(ids):
        return [np.linspace(0, k, 3) for k in ids]

    source = fs.data.Source(np.full(4, 3), jax.ShapeDtypeStruct((), np.float64), read)
    algorithm = fs.fedavg(lambda w, x, key: (x - w) ** 2, optax.sgd(0.1), fs.LocalTraining())
    given = fs.Experiment(algorithm, 0.0, whole, fs.sampling.uniform(2), 4)
    same(fs.simulate(given._replace(data=source), KEY, capacity=8), fs.simulate(given, KEY))


@pytest.mark.slow
def test_what_is_set_for_this_thread_alone_is_set_where_a_window_is_read(clients):
    """64 bits and the promotion of dtypes, which JAX holds for the thread that enters them."""
    seen = set()

    def look(ids):
        seen.add((jnp.zeros(()).dtype.name, jax.config.jax_numpy_dtype_promotion))

    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        doubles = fs.FederatedData.from_clients([x[:, 0] for x, _ in clients])
        algorithm = fs.fedavg(lambda w, x, key: (w - x) ** 2, optax.sgd(0.5), fs.LocalTraining(1))
        given = fs.Experiment(
            algorithm, 0.0, reading(doubles, look), fs.sampling.uniform(3), num_rounds=2
        )
        runs = [fs.simulate(given._replace(data=x), KEY) for x in (given.data, doubles)]
    same(*runs)
    assert runs[0].state.params.dtype == np.float64
    assert seen == {("float64", "standard")}
