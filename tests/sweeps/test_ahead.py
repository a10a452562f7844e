"""Programs that a thread prepares while the batches before train."""

import contextvars
import signal
import threading
import warnings
from functools import partial

import jax
import numpy as np
import pytest

import fedjax_sim as fs
from fedjax_sim.sweeps import ahead, batch
from tests.sweeps.test_sweep import factory

GRID = {"epochs": [1, 2, 3], "lr": [0.01, 0.02]}


def swept(data, traced_by=None, grid=GRID, **options):
    """The sweep of a factory that notes in which thread each static value is traced."""
    make = factory(data, rounds=3)

    def experiment(lr, epochs):
        if traced_by is not None and isinstance(lr, jax.core.Tracer):
            traced_by.setdefault(epochs, set()).add(threading.current_thread().name)
        return make(lr, epochs=epochs)

    return fs.sweep(experiment, grid, [0, 1], **options)


def is_by_main(traced_by):
    main = threading.main_thread().name
    return {epochs: names == {main} for epochs, names in traced_by.items()}


def test_the_thread_traces_what_comes_later_and_changes_no_bit(data, monkeypatch):
    alone, traced_by = {}, {}
    with monkeypatch.context() as patched:
        patched.setattr(ahead, "_settings", partial(next, iter([{}, {"a": 1}, {"a": 2}])))
        sequential = swept(data, alone)
    results = swept(data, traced_by)
    assert is_by_main(alone) == {1: True, 2: True, 3: True}
    assert is_by_main(traced_by) == {1: True, 2: False, 3: False}
    for run, other in zip(results.runs, sequential.runs, strict=True):
        for name, values in run.rounds.items():
            np.testing.assert_array_equal(values, other.rounds[name])


@pytest.mark.parametrize(
    "context", [jax.default_matmul_precision("float32"), jax.numpy_rank_promotion("warn")]
)
def test_a_setting_of_this_thread_alone_is_kept(data, context):
    traced_by = {}
    with context:
        swept(data, traced_by)
    assert is_by_main(traced_by) == {1: True, 2: True, 3: True}


def test_much_data_is_not_held_twice(data, monkeypatch):
    """The thread traces, and the program is compiled when its turn comes."""
    prepared = []
    whole = batch.compile_program

    def compiling(*arguments):
        prepared.append(threading.current_thread().name)
        return whole(*arguments)

    monkeypatch.setattr(batch, "compile_program", compiling)
    monkeypatch.setattr(ahead, "_SHARE_OF_CONSTANTS", 0.0)
    traced_by = {}
    swept(data, traced_by)
    assert is_by_main(traced_by) == {1: True, 2: False, 3: False}
    assert {*prepared} == {threading.main_thread().name}


def test_an_error_is_raised_in_its_turn_and_what_was_computed_is_kept(data):
    make = factory(data, rounds=3)
    main = threading.main_thread()
    failed = []

    def experiment(lr, epochs):
        if epochs == 2 and (failed or threading.current_thread() is not main):
            failed.append(threading.current_thread())
            raise RuntimeError("no second epoch")
        return make(lr, epochs=epochs)

    with pytest.raises(fs.InterruptedRun, match="no second epoch") as e:
        fs.sweep(experiment, GRID, [0, 1])
    assert {run.configuration["epochs"] for run in e.value.partial.runs} == {1}
    assert len(e.value.partial.runs) == 4
    assert failed[-1] is main


def test_what_the_thread_alone_cannot_do_is_done_in_its_turn(data):
    make = factory(data, rounds=3)
    main, failed = threading.main_thread(), []

    def experiment(lr, epochs):
        if threading.current_thread() is not main:
            failed.append(epochs)
            raise RuntimeError("not in a thread")
        return make(lr, epochs=epochs)

    assert len(fs.sweep(experiment, GRID, [0, 1]).runs) == 12
    assert failed == [2, 3]


def test_the_thread_has_the_context_of_the_caller(data):
    make, rounds = factory(data, rounds=3), contextvars.ContextVar("rounds")
    rounds.set(3)
    threads = set()

    def experiment(lr, epochs):
        assert rounds.get() == 3
        threads.add(threading.current_thread().name)
        return make(lr, epochs=epochs)

    fs.sweep(experiment, GRID, [0, 1])
    assert len(threads) == 2


def threads_at_work():
    return [t.name for t in threading.enumerate() if t.name.startswith("fedjax_sim")]


def test_a_sweep_that_ends_early_does_not_wait_for_the_thread(data):
    """As after an interrupt: what the thread is at cannot be stopped, and nobody needs it."""
    make, main = factory(data, rounds=3), threading.main_thread()
    begun, may_end = threading.Event(), threading.Event()

    def experiment(lr, epochs):
        if threading.current_thread() is not main:
            begun.set()
            may_end.wait(60)
        return make(lr, epochs=epochs)

    def fail(swept):
        begun.wait(60)
        raise RuntimeError("enough")

    try:
        with pytest.raises(fs.InterruptedRun):
            fs.sweep(experiment, GRID, [0, 1], on_progress=fail)
        assert begun.is_set()
        assert threads_at_work()
    finally:
        may_end.set()


def test_an_interrupt_ends_the_wait_for_a_program(data):
    make, main = factory(data, rounds=3), threading.main_thread()
    begun, may_end = threading.Event(), threading.Event()

    def experiment(lr, epochs):
        if threading.current_thread() is not main and not begun.is_set():
            begun.set()
            signal.raise_signal(signal.SIGINT)
            may_end.wait(60)
        return make(lr, epochs=epochs)

    try:
        results = fs.sweep(experiment, {"epochs": [1, 2], "lr": [0.01]}, [0])
        assert begun.is_set()
        assert threads_at_work()  # the sweep has ended, and the thread has not
    finally:
        may_end.set()
    assert {run.configuration["epochs"] for run in results.runs} <= {1}


def test_a_sweep_goes_on_where_no_thread_can_start(data, monkeypatch):
    """As in a thread that is left when the interpreter ends."""

    def refuse(self, *arguments):
        raise RuntimeError("cannot schedule new futures after interpreter shutdown")

    monkeypatch.setattr(ahead.ThreadPoolExecutor, "submit", refuse)
    traced_by = {}
    assert len(swept(data, traced_by).runs) == 12
    assert all(is_by_main(traced_by).values())


def test_what_is_saved_is_not_compiled_again(data, tmp_path):
    traced_by = {}
    swept(data, out=tmp_path / "sweep")
    swept(data, traced_by, out=tmp_path / "sweep", resume=True)
    assert all(is_by_main(traced_by).values())


def test_a_damaged_batch_is_told_of_once(data, tmp_path):
    """The thread looks for what is missing and reads nothing."""
    whole = swept(data, out=tmp_path / "sweep")
    file = sorted((tmp_path / "sweep" / "batches").glob("*.npz"))[-1]
    file.write_bytes(file.read_bytes()[:100])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        again = swept(data, out=tmp_path / "sweep", resume=True)
    assert sum("is damaged and is computed again" in str(each.message) for each in caught) == 1
    assert again.table() == whole.table()
