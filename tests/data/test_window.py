"""A window on a federation: the bits of the whole, and one compiled round for all windows."""

import pickle

import jax
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from fedjax_sim.execution.client import Engine
from tests.conftest import MESH, SIZES, linear_loss, zeros

KEY, LR = jax.random.key(3), 0.05
ALGORITHMS = {
    "fedavg": lambda: fs.fedavg(linear_loss, optax.sgd(LR), fs.LocalTraining(2, 4)),
    "fedsgd": lambda: fs.fedsgd(linear_loss, optax.sgd(LR)),
    # Full batches, padded to one of a few sizes of the whole federation; and client state.
    "scaffold": lambda: fs.scaffold(linear_loss, LR, fs.LocalTraining(2, None)),
}
STRATEGIES = {
    "packed": fs.execution.packed(2),
    "vmapped": fs.execution.vmapped(),
    "sharded": fs.execution.sharded(MESH, fs.execution.packed(2)),
}
COHORTS = ([1, 4, 3], [5, 0, 2], [7, 1, 6])  # of 20, 28 and 24 examples


@pytest.mark.parametrize(
    ("name", "strategy"),
    [
        ("fedavg", "packed"),
        *(
            pytest.param(*cell, marks=pytest.mark.slow)
            for cell in (
                ("fedavg", "vmapped"),
                ("fedavg", "sharded"),
                ("fedsgd", "packed"),
                ("fedsgd", "vmapped"),
                ("scaffold", "packed"),
                ("scaffold", "vmapped"),
                ("scaffold", "sharded"),
            )
        ),
    ],
)
def test_rounds_have_the_bits_of_the_whole(data, name, strategy):
    algorithm, traces = ALGORITHMS[name](), []
    round_fn = fs.make_round(algorithm, fs.aggregation.all_clients, STRATEGIES[strategy])
    source = fs.data.Source.of(data)
    state = fs.init(algorithm, zeros(), data)
    if strategy == "sharded":
        state = fs.execution.replicate(state, MESH)

    @jax.jit
    def step(state, data, cohort):
        traces.append(1)
        return round_fn(KEY, state, data, cohort)

    states = [state, state]
    for ids in COHORTS:
        cohort = fs.Cohort(np.array(ids, np.int32))
        window = fs.FederatedData.window(source, ids, capacity=32)
        ends = [
            step(state, some, cohort) for state, some in zip(states, (data, window), strict=True)
        ]
        for whole, windowed in zip(*map(jax.tree.leaves, ends), strict=True):
            np.testing.assert_array_equal(whole, windowed)
        states = [state for state, _ in ends]
    assert len(traces) == 2


def test_automatic_chooses_what_it_would_choose_of_the_whole():
    clients = [{"x": np.ones((3, 4), np.float32), "y": np.ones(3, np.float32)}] * 6
    data, algorithm = fs.FederatedData.from_clients(clients), ALGORITHMS["fedavg"]()
    window = fs.FederatedData.window(fs.data.Source.of(data), [1, 2], capacity=7)
    state = fs.init(algorithm, zeros(), data)
    message = algorithm.broadcast(state.server, state.round)
    for some in (data, window):
        engine = Engine(algorithm, some, KEY, message)
        assert fs.execution.automatic().chosen(engine, (), slots=2) == fs.execution.vmapped()


def test_clients_outside_have_no_examples(data):
    window = fs.FederatedData.window(fs.data.Source.of(data), [4, 1, 4], capacity=19)
    sizes = np.where(np.isin(np.arange(len(SIZES)), [1, 4]), SIZES, 0)
    assert window.num_examples.tolist() == sizes.tolist()
    assert window.total_num_examples == data.total_num_examples
    np.testing.assert_array_equal(window.client_weights, data.client_weights)
    for k in (1, 4):
        for name in ("x", "y"):
            start, whole = int(window.offsets[k]), int(data.offsets[k])
            np.testing.assert_array_equal(
                window.examples[name][start : start + SIZES[k]],
                data.examples[name][whole : whole + SIZES[k]],
            )
    algorithm = ALGORITHMS["fedavg"]()
    _, metrics = jax.jit(fs.make_round(algorithm, execution=fs.execution.vmapped()))(
        KEY, fs.init(algorithm, zeros(), data), window, fs.Cohort([0, 1, 5])
    )
    assert int(metrics.reporting) == 1


def source_of(read, sizes=(2, 3), dtype=np.float32):
    return fs.data.Source(np.array(sizes), jax.ShapeDtypeStruct((), dtype), read)


def ones(ids):
    return [np.ones(2 + k, np.float32) for k in ids]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: (source_of(ones), [2], 9), r"client_ids must lie in \[0, 2\); got 2"),
        (lambda: (source_of(ones), [-1, 0], 9), r"client_ids must lie in \[0, 2\); got -1"),
        (lambda: (source_of(ones), [], 9), "client_ids must be integers, the clients of a window"),
        (lambda: (source_of(ones), [0, 1], 4), "capacity must hold the 5 examples of these"),
        (lambda: (source_of(ones), [0], 2**31), "capacity must be at most 2147483647"),
        (lambda: (source_of(ones), [0], 0), "capacity must be a whole number, at least 1"),
        (lambda: (source_of(lambda ids: []), [0], 9), "as many clients as it is asked for, 1"),
        (
            lambda: (source_of(lambda ids: [{"x": 1}]), [0], 9),
            r"examples of its spec, .*of client 0 it reads",
        ),
        (
            lambda: (source_of(lambda ids: [np.ones(3, np.float32)]), [0], 9),
            r"must read float32\[2\] for examples of client 0; it reads float32\[3\]",
        ),
        (
            lambda: (source_of(lambda ids: [np.ones(3)]), [1], 9),
            r"must read float32\[3\] for examples of client 1; it reads float64\[3\]",
        ),
        (
            lambda: (source_of(lambda ids: [np.array([1, np.nan, 1], np.float32)]), [1], 9),
            "1 examples hold NaN or infinity, first example 1 of client 1",
        ),
        (lambda: (source_of(ones, sizes=(0, 0)), [0], 9), "all clients are empty"),
        (lambda: (source_of(ones, sizes=(0.5, 1.0)), [0], 9), "num_examples must be whole numbers"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        fs.FederatedData.window(*make())


@pytest.mark.parametrize("rows", [1, 3])
def test_evaluation_refuses_other_numbers_of_examples_than_a_source_says(rows):
    """Of a client that is none of the three that are looked at before; a block was filled up."""

    def read(ids):
        return [np.full(rows if k == 1 else 2, k, np.float32) for k in ids]

    source = source_of(read, sizes=(2, 2, 2, 2, 2))
    message = rf"source must read float32\[2\] for examples of client 1; it reads float32\[{rows}\]"
    with pytest.raises(Exception, match=message):
        jax.block_until_ready(fs.evaluate(lambda w, x, key: w * x, 1.0, source))


def test_what_needs_all_examples_refuses_a_window(data):
    window = fs.FederatedData.window(fs.data.Source.of(data), [1], capacity=16)
    message = "must hold all its examples; got a window of 16 rows on a federation of 60"
    with pytest.raises(ValueError, match=f"data {message}"):
        fs.evaluate(linear_loss, zeros(), window)
    experiment = fs.Experiment(
        ALGORITHMS["fedavg"](), zeros(), window, fs.sampling.everyone(), num_rounds=1
    )
    with pytest.raises(ValueError, match=f"experiment.data {message}"):
        fs.baselines.centralised(experiment)
    with pytest.raises(ValueError, match=f"data {message}"):
        fs.data.Source.of(window)
    for name in ("test", "clients", "validation"):
        with pytest.raises(ValueError, match=f"{name} {message}"):
            fs.evaluator(linear_loss, **{name: window})
    with pytest.raises(ValueError, match=f"clients {message}"):
        fs.baselines.evaluate_local(linear_loss, {}, clients=window)


def test_rounds_whose_cohorts_a_window_may_lack_refuse_it(data):
    window = fs.FederatedData.window(fs.data.Source.of(data), [1], capacity=16)
    experiment = fs.Experiment(
        ALGORITHMS["fedavg"](), zeros(), window, fs.sampling.uniform(2), num_rounds=2
    )
    for call in (
        lambda: experiment.run(KEY),
        lambda: jax.jit(experiment.run)(KEY),
        lambda: fs.simulate(experiment, KEY),
        lambda: fs.sweep(lambda lr: experiment, fs.grid.product(lr=[0.1]), keys=[0]),
    ):
        with pytest.raises(ValueError, match=r"data must hold .* 16 rows .* never report. Give"):
            call()


def test_names_are_static_whatever_list_they_are_given_as():
    spec = jax.ShapeDtypeStruct((), np.float32)
    source = fs.data.Source(np.array([2, 3]), spec, ones, client_names=iter(["a", "b"]))
    window = fs.FederatedData.window(source, [1], capacity=4)
    assert window.client_names == ("a", "b")
    assert int(jax.jit(lambda data: data.num_examples.sum())(window)) == 3


class CountedName(str):
    hashes = 0

    def __hash__(self):
        CountedName.hashes += 1
        return super().__hash__()


def test_names_are_hashed_once_however_many_windows_are_trained_on():
    spec = jax.ShapeDtypeStruct((), np.float32)
    names = [CountedName(name) for name in "ab"]
    source = fs.data.Source(np.array([2, 3]), spec, ones, client_names=names)
    total = jax.jit(lambda data: data.examples.sum())
    total(fs.FederatedData.window(source, [0], capacity=4))
    hashes = CountedName.hashes
    assert hashes > 0
    for k in (1, 0, 1):
        assert float(total(fs.FederatedData.window(source, [k], capacity=4))) == 2 + k
    assert CountedName.hashes == hashes
    copied = pickle.loads(pickle.dumps(fs.FederatedData.window(source, [0], 4).client_names))
    assert copied == source.client_names
    assert hash(copied) == hash(source.client_names) == hash(("a", "b"))
