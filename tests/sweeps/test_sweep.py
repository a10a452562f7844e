"""Sweeps: their configurations one by one, in any chunks, from any stop."""

import csv
import json
import signal
import types
import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fedjax_sim as fs
from fedjax_sim.execution import machine
from fedjax_sim.results import Mean, Results, Run
from fedjax_sim.results.folder import SWEEP
from fedjax_sim.sweeps import work
from fedjax_sim.sweeps.store import Store
from tests.conftest import MESH, linear_loss, zeros
from tests.helpers import killed

LOCAL = fs.LocalTraining(2, 4)
RATES = [0.01, 0.02, 0.05, 0.03, 0.04]


def factory(data, rounds=6):
    def experiment(lr, mu=0.0, epochs=2, mode="selected"):
        algorithm = fs.fedprox(linear_loss, optax.sgd(lr), fs.LocalTraining(epochs, 4), mu=mu)
        return fs.Experiment(
            algorithm,
            zeros(),
            data,
            fs.sampling.uniform(4),
            rounds,
            aggregation=getattr(fs.aggregation, mode),
            evaluate=lambda params: {"b": params["b"]},
        )

    return experiment


def alone(experiment):
    """(static, traced hyper-parameters, key) -> a run of its own, compiled once for each static."""

    @partial(jax.jit, static_argnums=0)
    def run(static, traced, key):
        return experiment(**dict(static), **traced).run(key)

    def of(configuration, key):
        static = {k: v for k, v in configuration.items() if not isinstance(v, float)}
        traced = {k: v for k, v in configuration.items() if isinstance(v, float)}
        return run(tuple(static.items()), traced, key)

    return of


def one_by_one(experiment, results, keys):
    """Each run beside the same experiment run alone."""
    run_alone = alone(experiment)
    for run in results.runs:
        _, history = run_alone(run.configuration, keys[run.seed])
        np.testing.assert_allclose(run.rounds["b"], history.evaluation["b"], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(
            run.rounds["train_loss"], history.rounds.train["loss"], rtol=1e-4
        )
        np.testing.assert_array_equal(run.rounds["client_steps"], history.rounds.client_steps)


@pytest.mark.slow
def test_it_equals_its_configurations_one_by_one(data):
    """Traced and static axes, two groups, blocks that do not come out even, two devices."""
    grid = fs.grid.product(epochs=[1, 2], lr=RATES[:3]) * fs.grid.product(mu=[0.0, 0.5])
    traces = []
    make = factory(data)

    def counted(**hyper):
        traces.append(isinstance(hyper["lr"], jax.core.Tracer))
        return make(**hyper)

    results = fs.sweep(lambda lr, mu, epochs: counted(lr=lr, mu=mu, epochs=epochs), grid, [0, 1])
    assert len(results.runs) == len(grid) * 2
    assert [run.configuration for run in results.runs[::2]] == list(grid)
    assert [run.seed for run in results.runs[:4]] == [0, 1, 0, 1]
    # Checked, then traced for the first state and for the round: once a group.
    assert sum(traces) == 2 * 3
    one_by_one(make, Results(results.runs[::5]), [jax.random.key(s) for s in (0, 1)])
    # Common random numbers: the same cohorts for all configurations of a seed.
    first, other = results.runs[0], results.runs[2]
    np.testing.assert_array_equal(first.rounds["client_steps"], other.rounds["client_steps"])


@pytest.fixture(scope="module")
def whole_table(data):
    return fs.sweep(factory(data), {"lr": RATES}, [0, 1, 2]).table()


@pytest.mark.parametrize(
    "side_by_side",
    [None, *(pytest.param(width, marks=pytest.mark.slow) for width in (1, 2))],
)  # None: on one device
def test_the_table_does_not_depend_on_the_chunks(data, side_by_side, whole_table, tmp_path):
    options = {"mesh": jax.sharding.Mesh(MESH.devices[:1], "r")} if side_by_side is None else {}
    parts = fs.sweep(
        factory(data), {"lr": RATES}, [0, 1, 2], side_by_side=side_by_side, out=tmp_path, **options
    )
    for a, b in zip(whole_table, parts.table(), strict=True):
        assert list(a) == list(b)
        # Lane-steps are those of the strategy, which one by one may be another.
        for name in set(a) - {"lane_steps", "useful_share"}:
            assert a[name] == pytest.approx(b[name], rel=1e-4, abs=1e-6)
    assert {path.name for path in tmp_path.iterdir()} == {
        "sweep.json",
        "batches",
        "summary.json",
        "table.csv",
        "rounds.csv",
    }


@pytest.mark.slow
def test_a_function_of_key_and_hyper_parameters(data):
    make = factory(data)

    def experiment(key, lr, epochs):
        state, history = make(lr=lr, epochs=epochs).run(key)
        return {"b": state.params["b"], "loss": history.rounds.train["loss"]}

    results = fs.sweep(experiment, {"epochs": [1, 2], "lr": RATES[:3]}, [3, 4])
    run_alone = alone(make)
    for run in results.runs:
        state, history = run_alone(run.configuration, jax.random.key(run.seed))
        assert run.values["b"] == pytest.approx(float(state.params["b"]), rel=1e-4)
        np.testing.assert_allclose(run.rounds["loss"], history.rounds.train["loss"], rtol=1e-4)
        assert run.row()["complete"]
    history = fs.sweep(lambda key, lr: make(lr=lr).run(key)[1], {"lr": RATES[:2]}, [0])
    _, one = run_alone({"epochs": 2, "lr": 0.02}, jax.random.key(0))
    np.testing.assert_allclose(history.runs[1].rounds["b"], one.evaluation["b"], rtol=1e-4)


def test_own_random_numbers_for_each_configuration(data):
    results = fs.sweep(factory(data), {"lr": [0.02, 0.03]}, [0, 1], common_random_numbers=False)
    steps = [tuple(run.rounds["client_steps"]) for run in results.runs]
    assert len(set(steps)) == 4
    with pytest.raises(ValueError, match="side_by_side must be 1 without common"):
        fs.sweep(factory(data), {"lr": [0.02]}, [0], common_random_numbers=False, side_by_side=2)


def test_what_diverges_is_marked_and_costs_no_other_its_result(data):
    make = factory(data, rounds=30)
    results = fs.sweep(make, {"lr": [0.02, 500.0, 0.03]}, [0, 1])
    assert [run.diverged for run in results.runs] == [False, False, True, True, False, False]
    alone = fs.sweep(make, {"lr": [0.02, 0.03]}, [0, 1])
    for a, b in zip([*results.runs[:2], *results.runs[4:]], alone.runs, strict=True):
        np.testing.assert_allclose(a.rounds["b"], b.rounds["b"], rtol=1e-4, atol=1e-6)
    best = results.best("train_loss", lowest=True)
    assert best.configuration["lr"] in (0.02, 0.03)
    assert results.mean("b")[1].diverged == 2
    with pytest.raises(ValueError, match="no configuration has a finite b"):
        Results(results.runs[2:4]).best("b")


@pytest.mark.slow
def test_interrupted_and_resumed_it_is_the_same(tmp_path):
    whole = killed.sweep(tmp_path / "whole")
    told = []

    def stop(progress):
        told.append(progress)
        if len(told) == 6:
            signal.raise_signal(signal.SIGINT)

    part = killed.sweep(tmp_path / "part", on_progress=stop)
    assert len(part.runs) < len(whole.runs)
    assert not all(run.row()["complete"] for run in part.runs)
    summary = json.loads((tmp_path / "part" / "summary.json").read_text())
    assert not summary["complete"]
    resumed = killed.sweep(tmp_path / "part")
    for a, b in zip(killed.arrays(resumed), killed.arrays(whole), strict=True):
        np.testing.assert_array_equal(a, b)
    # What is whole is read, not computed; what is damaged is computed again.
    batch = tmp_path / "part" / "batches" / "000001.npz"
    batch.write_bytes(batch.read_bytes()[:-200])
    with pytest.warns(UserWarning, match="000001.npz is damaged and is computed again"):
        again = killed.sweep(tmp_path / "part")
    for a, b in zip(killed.arrays(again), killed.arrays(whole), strict=True):
        np.testing.assert_array_equal(a, b)
    assert told[-1].num_runs == 15


def test_what_fails_once_runs_are_through_loses_none_of_them(data):
    def fail(swept):
        if swept.runs > 2:  # in the second batch: one run on each of the two devices
            raise ConnectionError("nobody listens")

    with pytest.raises(fs.InterruptedRun, match="a round was not told of: Conn") as e:
        fs.sweep(factory(data), {"lr": RATES[:4]}, [0], side_by_side=1, on_progress=fail)
    assert isinstance(e.value.__cause__, ConnectionError)
    assert [run.configuration["lr"] for run in e.value.partial.runs] == RATES[:2]
    assert all(run.done == run.num_rounds for run in e.value.partial.runs)


def test_what_a_factory_raises_names_the_configuration(data):
    def experiment(lr, mode):
        return factory(data)(lr, mode=mode)

    with pytest.raises(AttributeError, match="selectd") as error:
        fs.sweep(experiment, {"lr": [0.01], "mode": ["selected", "selectd"]}, [0])
    # What is traced has no value to be told.
    assert error.value.__notes__[0] == "experiment was called with {'mode': 'selectd'}"


def test_progress_counts_no_run_twice(data):
    # Five configurations and one seed over two devices: the last batch repeats a run.
    told = []
    fs.sweep(factory(data), {"lr": RATES}, [0], side_by_side=1, on_progress=told.append)
    runs = [now.runs for now in told]
    assert runs == sorted(runs)
    assert runs[-1] == told[-1].num_runs == 5


def test_configurations_side_by_side_fit_the_cache(data, monkeypatch):
    from fedjax_sim.sweeps import plan

    keys = jnp.stack([jax.random.key(0), jax.random.key(1)])
    grid = fs.grid.product(lr=list(np.linspace(0.01, 0.02, 20)))

    def widths(cache, limit=1e12, **options):
        monkeypatch.setattr(plan, "cache_bytes", lambda: cache)
        (group,) = plan.plan(factory(data), grid, keys, devices=2, limit=limit, **options)
        return group.side_by_side

    assert widths(2**20) == 20
    carry = 20 + 20  # five parameters of a model; SGD has no state
    assert widths(10 * carry // 4) in range(1, 20)
    assert widths(1) == 1
    assert widths(2**20, limit=1.0) == 1
    assert widths(1, side_by_side=7) == 7  # 20 are three blocks of 7


def test_values_that_go_together_are_tried_together(data):
    """Each in a configuration that has it, and not beside the values of another one."""
    from fedjax_sim.sweeps import plan

    def make(lr, mu):
        if not isinstance(lr, jax.core.Tracer) and lr * mu > 0.2:
            raise ValueError(f"mu must be at most 0.2 / lr; got {mu}")
        return factory(data)(lr, mu)

    def planned(grid):
        keys = jax.random.key(0)[None]
        return plan.plan(make, grid, keys, devices=1, limit=1e12)

    (group,) = planned(fs.grid.zip(lr=[0.1, 0.01], mu=[1.0, 10.0]))
    assert group.traced == ("lr", "mu")
    with pytest.raises(ValueError, match=r"mu must be at most .*; got 10"):
        planned(fs.grid.product(lr=[0.1, 0.01], mu=[1.0, 10.0]))


def test_bad_sweeps_are_refused_before_anything_runs(data, tmp_path):
    make = factory(data)

    def refused(message, experiment=make, grid=None, keys=(0,), **options):
        with pytest.raises(ValueError, match=message):
            fs.sweep(experiment, {"lr": RATES[:2]} if grid is None else grid, keys, **options)

    refused(
        "grid has 'epoch', which experiment does not take; did you mean 'epochs'",
        grid={"lr": [0.1], "epoch": [1]},
    )
    refused("grid must give lr, which experiment has no default of", grid={"mu": [0.1]})
    refused("keys must be typed keys", keys=[])
    refused("keys must be typed keys", keys=[1, 1])
    refused("static must name axes of the grid, lr; got 'mu'", static=["mu"])
    refused("side_by_side must be .*got 0", side_by_side=0)
    refused("memory_limit must be positive; got -1", memory_limit=-1)
    refused("resume needs out", resume=True)
    refused("experiment must be a function", experiment=make(lr=0.1))
    refused("experiment must return an fs.Experiment", experiment=lambda lr: lr)
    refused(
        "client_optimizer must be",
        experiment=lambda lr: fs.Experiment(
            fs.fedavg(linear_loss, lr, LOCAL), zeros(), data, fs.sampling.uniform(2), 2
        ),
    )
    refused("mu must be .*at least 0; got -1", grid={"lr": [0.1], "mu": [0.1, -1.0]})
    refused(
        "execution must not be sharded",
        experiment=lambda lr: make(lr)._replace(execution=fs.execution.sharded(MESH)),
    )
    refused(
        "mesh must be None in what a sweep calls",
        experiment=lambda lr: make(lr)._replace(
            evaluate=fs.evaluator(linear_loss, data, mesh=MESH)
        ),
    )
    refused(
        r"grid axis mu cannot be traced.*static=\('mu',\)",
        experiment=lambda lr, mu: make(lr, mu=1.0 if mu > 0.5 else 0.0),
        grid={"lr": [0.1], "mu": [0.1, 0.9]},
    )
    refused(
        "has two values that are both called '<lambda>'",
        experiment=lambda f: make(f()),
        grid={"f": [lambda: 0.1, lambda: 0.2]},
    )
    refused("memory_limit must hold a call; got 0 MB", memory_limit=10.0)
    refused(
        r"grid must have each configuration once; got {'lr': 0.1} twice",
        grid={"lr": [0.1, 0.2, 0.1]},
    )
    results = fs.sweep(
        lambda lr, mu: make(lr, mu=1.0 if mu > 0.5 else 0.0),
        {"lr": [0.1], "mu": [0.1, 0.9]},
        [0],
        static=["mu"],
    )
    assert len(results.runs) == 2

    fs.sweep(make, {"lr": RATES[:2]}, [0], out=tmp_path)
    kept = (tmp_path / "table.csv").read_bytes()
    refused("holds a sweep already; resume it", out=tmp_path)
    refused("grid is", grid={"lr": RATES[:3]}, out=tmp_path, resume=True)
    refused("seeds is .*0.* there and .*1.* here", keys=[1], out=tmp_path, resume=True)
    assert (tmp_path / "table.csv").read_bytes() == kept
    (tmp_path / "sweep.json").unlink()  # its batches must not pass for those of another sweep
    refused("holds batches and no sweep.json", out=tmp_path)


@pytest.mark.parametrize(
    ("name", "makes"),
    [
        ("examples", None),
        ("rounds", None),
        ("seed", None),
        ("nonfinite", None),
        ("b", None),
        ("train_loss", None),
        ("loss", {"loss": 1.0}),
        ("seed", {"loss": 1.0}),
        ("value", 2.0),
    ],
)
def test_an_axis_called_like_a_column_is_refused(data, monkeypatch, name, makes):
    monkeypatch.setattr(work, "Compiled", lambda *_: pytest.fail("compiled"))
    make = factory(data)
    experiment = (lambda **_: make(lr=0.1)) if makes is None else (lambda key, **_: makes)
    with pytest.raises(ValueError, match=f"must not have an axis '{name}', .*taken are"):
        fs.sweep(experiment, {name: [0.5, 1.5]}, [0])


def test_a_result_called_like_a_label_is_refused(data):
    with pytest.raises(ValueError, match="experiment must not return 'seed'"):
        fs.sweep(lambda key, lr: {"seed": lr}, {"lr": [0.1]}, [0])
    wrong = factory(data)(0.1)._replace(evaluate=lambda params: {"rounds": params["b"]})
    with pytest.raises(ValueError, match="evaluate must not return 'rounds'"):
        fs.sweep(lambda lr: wrong, {"lr": [0.1]}, [0])
    with pytest.raises(ValueError, match="evaluate must not return 'rounds'"):
        fs.simulate(wrong, jax.random.key(0))


def test_memory_is_that_of_all_devices():
    def device(limit, used):
        return types.SimpleNamespace(
            memory_stats=lambda: {"bytes_limit": limit, "bytes_in_use": used}
        )

    # Dealt evenly: four times what the fullest has left.
    some = [device(100, 10), device(100, 40), device(80, 0), device(100, 0)]
    assert machine.free_memory(some) == 4 * 60
    # The devices of a CPU have one memory.
    cpus = jax.local_devices()
    assert len(cpus) == 2
    assert machine.free_memory(cpus) < 1.5 * machine.free_memory(cpus[:1])


def test_tables_that_cannot_be_written_cost_no_run(data, tmp_path, monkeypatch):
    whole = fs.sweep(factory(data), {"lr": RATES[:2]}, [0], out=tmp_path)

    def full(path, save):
        raise fs.SaveError(28, "No space left on device")

    monkeypatch.setattr("fedjax_sim.results.table.replace_file", full)
    with pytest.raises(fs.SaveError, match=r"table.csv, rounds.csv, summary.json \(No space") as e:
        fs.sweep(factory(data), {"lr": RATES[:2]}, [0], out=tmp_path, resume=True)
    assert e.value.partial.table() == whole.table()


def test_grids():
    grid = fs.grid.product(a=[1, 2], b=["x"]) + fs.grid.zip(a=[3], b=["y"])
    assert list(grid) == [{"a": 1, "b": "x"}, {"a": 2, "b": "x"}, {"a": 3, "b": "y"}]
    drawn = fs.grid.random(
        jax.random.key(1),
        50,
        lr=fs.grid.log_uniform(1e-3, 1.0),
        c=fs.grid.choice([1, 2]),
        u=fs.grid.uniform(2.0, 3.0),
    )
    assert list(drawn) == list(
        fs.grid.random(
            jax.random.key(1),
            50,
            lr=fs.grid.log_uniform(1e-3, 1.0),
            c=fs.grid.choice([1, 2]),
            u=fs.grid.uniform(2.0, 3.0),
        )
    )
    rates = np.array([one["lr"] for one in drawn])
    assert ((rates >= 1e-3) & (rates < 1)).all()
    assert 10 < (rates < 10**-1.5).sum() < 40  # the median of the logarithm
    assert {one["c"] for one in drawn} == {1, 2}
    assert all(2 <= one["u"] < 3 for one in drawn)
    for wrong, message in (
        (lambda: fs.grid.product(a=[]), "a must have at least one value"),
        (lambda: fs.grid.product(a="xy"), "a must be a sequence of values; got 'xy'"),
        (lambda: fs.grid.zip(a=[1], b=[1, 2]), "same length; got a: 1, b: 2"),
        (lambda: grid * fs.grid.product(a=[1]), r"must not share names; both have \['a'\]"),
        (lambda: grid + fs.grid.product(a=[1]), "must have the same names"),
        (lambda: fs.grid.log_uniform(0, 1), "low must be .*positive; got 0"),
        (lambda: fs.grid.uniform(2, 1), "high must be .*above low = 2; got 1"),
        (lambda: fs.grid.random(jax.random.key(0), 2, a=[1]), "a must be grid.uniform"),
    ):
        with pytest.raises(ValueError, match=message):
            wrong()


def runs(values, name="score"):
    return Results(
        tuple(
            Run({"lr": lr}, seed, {name: np.array([0.0, value])}, {}, 2)
            for lr, row in values.items()
            for seed, value in enumerate(row)
        )
    )


def test_means_by_hand():
    # Three seeds 1, 2, 3: mean 2, s = 1, and t_{0.975, 2} = 4.302653.
    found = runs({0.1: [1.0, 2.0, 3.0], 0.2: [5.0, 5.0, 5.0]}).mean("score")
    half = 4.302652729911275 / np.sqrt(3)
    assert found[0] == Mean(
        {"lr": 0.1}, 2.0, pytest.approx(2 - half), pytest.approx(2 + half), 3, 0
    )
    assert (found[1].low, found[1].high) == (5.0, 5.0)
    assert np.isnan(runs({0.1: [1.0]}).mean("score")[0].low)
    with pytest.raises(ValueError, match="metric must be one of score; got 'acc'"):
        runs({0.1: [1.0]}).mean("acc")


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=2, max_size=8))
def test_an_interval_holds_the_mean_and_widens_with_confidence(values):
    results = runs({0.1: values})
    (narrow,), (wide,) = (results.mean("score", c) for c in (0.5, 0.95))
    assert wide.low <= narrow.low <= narrow.mean <= narrow.high <= wide.high
    assert narrow.mean == pytest.approx(np.mean(values), rel=1e-9, abs=1e-9)


def test_files_are_the_table(data, tmp_path):
    results = fs.sweep(
        factory(data, 3), {"lr": RATES[:2], "mode": ["selected", "all_clients"]}, [7]
    )
    results.save(tmp_path, {"kind": "sweep"})
    with (tmp_path / "table.csv").open() as file:
        table = list(csv.DictReader(file))
    with (tmp_path / "rounds.csv").open() as file:
        rounds = list(csv.DictReader(file))
    assert len(table) == 4
    assert len(rounds) == 12
    assert [row["mode"] for row in table] == ["selected", "all_clients"] * 2
    assert float(table[1]["b"]) == results.runs[1].rounds["b"][-1]
    # All 8 clients are sent 5 numbers of 4 bytes in all_clients; the 4 selected otherwise.
    assert [int(row["bytes_down"]) for row in table] == [3 * 4 * 20, 3 * 8 * 20] * 2
    assert [row["round"] for row in rounds[:3]] == ["1", "2", "3"]
    assert rounds[0]["seed"] == "7"


def test_no_damaged_byte_of_a_batch_stops_a_sweep(tmp_path):
    """What reading raises depends on the byte: each is a batch to compute again."""
    store = Store(tmp_path)
    store.folder.parts(SWEEP).mkdir()
    columns = {"rounds": {"loss": np.arange(3.0)}, "values": {"x": np.arange(2)}}
    store.save(0, columns, [(0, 7)], 3)
    path = store.folder.parts(SWEEP) / "000000.npz"
    whole = path.read_bytes()
    assert store.load(0) is not None
    damaged = 0
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        for place in range(len(whole)):
            for flipped in (1, 255):
                path.write_bytes(
                    whole[:place] + bytes([whole[place] ^ flipped]) + whole[place + 1 :]
                )
                damaged += store.load(0) is None
    assert damaged > len(whole) / 2


@pytest.mark.slow
def test_words_as_numbers_are_one_program_and_stand_in_the_tables(data, tmp_path):
    """A rule by its number: the curves of a sweep of functions, in one trace of a client's loss."""
    rules = {"selected": fs.aggregation.selected, "all_clients": fs.aggregation.all_clients}
    traces = []

    def loss_fn(params, batch, key):
        traces.append(1)
        return linear_loss(params, batch, key)

    def experiment(rule):
        rule = rule if callable(rule) else fs.aggregation.chosen(rule, *rules.values())
        algorithm = fs.fedavg(loss_fn, optax.sgd(0.05), fs.LocalTraining(batch_size=4))
        return fs.Experiment(algorithm, zeros(), data, fs.sampling.uniform(3), 3, rule)

    apart = fs.sweep(experiment, {"rule": list(rules.values())}, [0, 1])
    of_two_groups = len(traces)
    traces.clear()
    grid = fs.grid.product(rule=fs.grid.numbered(rules))
    together = fs.sweep(experiment, grid, [0, 1], out=tmp_path / "sweep")
    assert len(traces) < of_two_groups
    assert [run.configuration for run in together.runs] == [run.configuration for run in apart.runs]
    for a, b in zip(together.runs, apart.runs, strict=True):
        np.testing.assert_allclose(a.rounds["update_norm"], b.rounds["update_norm"], rtol=1e-5)
    table = (tmp_path / "sweep" / "table.csv").read_text()
    assert "all_clients" in table
    resumed = fs.sweep(experiment, grid, [0, 1], out=tmp_path / "sweep", resume=True)
    np.testing.assert_array_equal(
        resumed.runs[3].rounds["update_norm"], together.runs[3].rounds["update_norm"]
    )
    with pytest.raises(ValueError, match="names must be words, each once"):
        fs.grid.numbered(["a", "a"])
