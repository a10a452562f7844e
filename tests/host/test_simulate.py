"""Runs driven from the host: the same bits however they are cut, killed and resumed."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from fedjax_sim.host import program
from fedjax_sim.host.checkpoints import Checkpoints, flatten, unflatten
from tests.conftest import MESH, linear_loss, zeros
from tests.helpers import killed


def same(a, b):
    for x, y in zip(killed.arrays(a), killed.arrays(b), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.fixture(scope="module")
def whole():
    return fs.simulate(killed.experiment(0.03), jax.random.key(5))


def test_it_is_a_run(whole):
    state, history = jax.jit(killed.experiment(0.03).run)(jax.random.key(5))
    assert whole.status == "finished"
    assert int(whole.state.round) == killed.ROUNDS
    for a, b in zip(
        jax.tree.leaves((whole.state, whole.history)),
        jax.tree.leaves((state, history)),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    evaluated = [7, 14, 21, 28, 35, 42, 49, 56, 60]
    np.testing.assert_array_equal(np.flatnonzero(whole.history.evaluated) + 1, evaluated)
    assert np.isfinite(whole.history.evaluation["b"][whole.history.evaluated]).all()
    assert np.isnan(whole.history.evaluation["b"][~whole.history.evaluated]).all()


@pytest.mark.parametrize(
    "every",
    [pytest.param(1, marks=pytest.mark.slow), 7, pytest.param(60, marks=pytest.mark.slow)],
)
def test_checkpoints_change_no_bit(whole, tmp_path, every):
    run = fs.simulate(
        killed.experiment(0.03), jax.random.key(5), out=tmp_path, checkpoint_every=every
    )
    same(run, whole)
    # What is finished is read, not run.
    back = fs.simulate(
        killed.experiment(0.03),
        jax.random.key(5),
        out=tmp_path,
        resume=True,
        on_progress=lambda progress: pytest.fail("nothing was left to do"),
    )
    same(back, whole)
    assert len(Checkpoints(tmp_path / "checkpoints").numbers()) <= 2


def stopping(after):
    """A progress function that sends the process a SIGTERM once so many rounds are done."""
    sent = []

    def on_progress(progress):
        if progress.round >= after and not sent:
            sent.append(progress.round)
            signal.raise_signal(signal.SIGTERM)

    return on_progress


def test_a_signal_ends_it_saved_and_resume_goes_on(whole, tmp_path):
    handler = signal.getsignal(signal.SIGTERM)
    part = killed.simulate(tmp_path, on_progress=stopping(10))
    assert part.status == "interrupted"
    done = int(part.state.round)
    assert 10 <= done < killed.ROUNDS
    assert len(part.history.evaluated) == done
    assert signal.getsignal(signal.SIGTERM) is handler
    assert Checkpoints(tmp_path / "checkpoints").numbers()[-1] == done
    assert not part.results().runs[0].row()["complete"]
    same(killed.simulate(tmp_path), whole)


def test_it_runs_in_a_thread_where_no_signal_can_be_caught():
    found = []
    experiment = killed.experiment(0.03)._replace(num_rounds=2)
    thread = threading.Thread(
        target=lambda: found.append(fs.simulate(experiment, jax.random.key(0)))
    )
    thread.start()
    thread.join()
    assert found[0].status == "finished"


@pytest.mark.parametrize("cut", ["truncated", "changed", "emptied"])
def test_a_damaged_checkpoint_is_passed_over_and_said(whole, tmp_path, cut):
    killed.simulate(tmp_path, on_progress=stopping(20))
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    before, last = checkpoints.numbers()
    files = [p for p in (checkpoints.folder / f"{last:09d}").rglob("*") if p.is_file()]
    largest = max(files, key=lambda p: p.stat().st_size)
    content = bytearray(largest.read_bytes())
    if cut == "truncated":
        content = content[: len(content) // 2]
    elif cut == "emptied":
        content = b""
    else:
        content[len(content) // 2] ^= 0xFF
    largest.write_bytes(content)
    with pytest.warns(UserWarning, match=f"checkpoint {last} .* is damaged and was passed over"):
        resumed = killed.simulate(tmp_path)
    same(resumed, whole)
    assert before < last


@pytest.mark.slow
def test_one_cut_off_in_the_middle_is_not_seen(whole, tmp_path):
    """What a killed process leaves of a checkpoint that it was writing."""
    killed.simulate(tmp_path, on_progress=stopping(20))
    folder = tmp_path / "checkpoints"
    last = Checkpoints(folder).numbers()[-1]
    left = folder / f"{last + 5:09d}.orbax-checkpoint-tmp-1"
    (folder / f"{last:09d}").rename(left)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same(killed.simulate(tmp_path), whole)
    assert not left.exists()


def kill_and_resume(what, out, moments, seed, cache):
    """SIGKILLs the process at random moments of its life, then lets it end."""
    rng = np.random.default_rng(seed)
    environment = {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_NUM_CPU_DEVICES": "2",
    }
    command = [sys.executable, "-m", "tests.helpers.killed", what, str(out)]
    deaths = 0
    while not (out / "result.npz").exists():
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)
        process.stdout.readline()  # imports are done
        if deaths < moments:
            time.sleep(rng.uniform(0, 4))
            process.kill()
            deaths += process.wait() == -signal.SIGKILL
        else:
            assert process.wait() == 0
        process.stdout.close()
    with np.load(out / "result.npz") as found:
        return deaths, [found[name] for name in found.files]


@pytest.mark.parametrize(
    ("what", "moments"),
    [
        pytest.param("simulate", 20, marks=pytest.mark.slow),
        pytest.param("sweep", 20, marks=pytest.mark.slow),
    ],
)
def test_killed_and_resumed_it_has_the_same_bits(tmp_path, tmp_path_factory, what, moments):
    for name in ("killed", "whole"):
        (tmp_path / name).mkdir()
    # One for all of these tests, and no others: it may hold half of what a process was killed at.
    cache = tmp_path_factory.getbasetemp().parent / "killed-xla"
    deaths, found = kill_and_resume(what, tmp_path / "killed", moments, moments, cache)
    _, expected = kill_and_resume(what, tmp_path / "whole", 0, 0, cache)
    assert deaths > 0
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_full_disk_loses_nothing_that_was_saved(whole, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", disk]).returncode:
        pytest.skip("mounting a tmpfs needs root")
    filler = disk / "filler"
    try:

        def fill(progress):
            if progress.round == 20:
                with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
                    while file.write(b"x" * 4096):
                        pass

        with pytest.raises(fs.SaveError, match=r"checkpoint .* was not saved .*No space left") as e:
            killed.simulate(disk, on_progress=fill)
        assert len(str(e.value).splitlines()) == 1
        kept = Checkpoints(disk / "checkpoints").load()
        assert kept is not None
        assert 0 < kept.number <= 20
        assert int(e.value.partial.state.round) >= kept.number
        filler.unlink()
        same(killed.simulate(disk), whole)
    finally:
        subprocess.run(["umount", disk], check=True)


def test_early_stop_is_at_the_very_round(whole, tmp_path):
    target = float(np.sort(whole.history.evaluation["norm"][whole.history.evaluated])[3])
    first = int(np.flatnonzero(whole.history.evaluation["norm"] >= target)[0]) + 1
    stop = fs.reaches("norm", target)
    run = fs.simulate(killed.experiment(0.03), jax.random.key(5), stop=stop, out=tmp_path)
    assert (run.status, int(run.state.round)) == ("stopped", first)
    np.testing.assert_array_equal(
        run.history.evaluation["norm"], whole.history.evaluation["norm"][:first]
    )
    back = fs.simulate(
        killed.experiment(0.03), jax.random.key(5), stop=stop, out=tmp_path, resume=True
    )
    assert back.status == "stopped"
    same(back, run)
    assert run.results().runs[0].row()["complete"]


@pytest.mark.slow  # two programs, whose bits agree where XLA compiles as users have it
def test_a_criterion_given_later_ends_it_as_if_it_had_been_there(whole, tmp_path):
    experiment, key = killed.experiment(0.03), jax.random.key(5)
    first = int(np.flatnonzero(whole.history.evaluated)[3]) + 1
    there = float(whole.history.evaluation["norm"][first - 1])

    def stop(history):  # not met before
        return history.evaluated & (abs(history.evaluation["norm"] - there) < 1e-6)

    uninterrupted = fs.simulate(experiment, key, stop=stop)
    assert (uninterrupted.status, int(uninterrupted.state.round)) == ("stopped", first)

    def until(round, out):
        """Without a criterion, to the very round."""
        return fs.simulate(
            experiment, key, out=out, checkpoint_every=round, on_progress=stopping(round)
        )

    for name, end in (("before", first - 1), ("there", first), ("behind", first + 2)):
        part = until(end, tmp_path / name)
        assert (part.status, int(part.state.round)) == ("interrupted", end)
        told = []
        run = fs.simulate(
            experiment, key, out=tmp_path / name, resume=True, stop=stop, on_progress=told.append
        )
        assert run.status == "stopped"
        assert run.results().runs[0].row()["complete"]
        assert len(told) == (name == "before")
        same(run, part if name == "behind" else uninterrupted)  # no round is taken back


def test_an_early_start_over_keeps_its_own_checkpoints(tmp_path):
    """Those of higher numbers are damaged, or the run had not begun before them."""
    checkpoints = Checkpoints(tmp_path)
    one = {"x": np.ones(3)}
    for number in (50, 100):
        checkpoints.save(number, one, {"stopped": False})
    for number in (10, 20, 30):
        checkpoints.save(number, one, {"stopped": False})
    assert checkpoints.numbers() == [20, 30]


def test_a_damaged_checkpoint_is_none_of_the_two_that_are_kept(tmp_path):
    first = Checkpoints(tmp_path)
    for number in (10, 20):
        first.save(number, {"x": np.ones(3)}, {"stopped": False})
    for file in (tmp_path / "000000020").rglob("*"):
        if file.is_file() and "ocdbt" in str(file):
            file.write_bytes(b"damaged")
    again = Checkpoints(tmp_path)
    with pytest.warns(UserWarning, match="checkpoint 20 .* is damaged"):
        assert again.load().number == 10
    again.save(30, {"x": np.ones(3)}, {"stopped": False})
    assert again.numbers() == [10, 30]
    again.save(40, {"x": np.ones(3)}, {"stopped": False})
    assert again.numbers() == [30, 40]


def test_the_users_arrays_are_not_donated(data):
    rate = jnp.float32(1)
    optimizer = optax.inject_hyperparams(optax.sgd)(learning_rate=rate)
    algorithm = fs.fedavg(linear_loss, optax.sgd(0.02), fs.LocalTraining(1, 4), optimizer)
    experiment = fs.Experiment(algorithm, zeros(), data, fs.sampling.uniform(4), 3)
    same(*(fs.simulate(experiment, jax.random.key(1)) for _ in range(2)))
    assert float(rate) == 1


def test_sharded_strategy(whole):
    experiment = killed.experiment(0.03)._replace(execution=fs.execution.sharded(MESH))
    run = fs.simulate(experiment, jax.random.key(5))
    np.testing.assert_allclose(run.state.params["w"], whole.state.params["w"], atol=1e-5)


class Rows:
    """A writer that keeps what it is given."""

    def __init__(self):
        self.rows, self.closed = {}, 0

    def write(self, round, values):
        self.rows[round] = dict(values)

    def close(self):
        self.closed += 1


class Broken(Rows):
    """One that fails at a round, and when it is closed."""

    def __init__(self, at):
        super().__init__()
        self.at = at

    def write(self, round, values):
        if round == self.at:
            raise OSError(f"no line for round {round}")
        super().write(round, values)

    def close(self):
        super().close()
        raise RuntimeError("closed badly")


@pytest.mark.parametrize("saved", [True, False])
def test_a_writer_that_fails_loses_nothing(whole, tmp_path, saved):
    experiment, key = killed.experiment(0.03), jax.random.key(5)
    out, broken, rows = tmp_path if saved else None, Broken(12), Rows()
    with pytest.raises(fs.InterruptedRun, match=r"not told of: OSError.*no line for round 12") as e:
        fs.simulate(experiment, key, out=out, writers=[broken, rows])
    assert isinstance(e.value.__cause__, OSError)
    assert (broken.closed, rows.closed) == (1, 1)
    notes = "\n".join(e.value.__notes__)
    assert "Broken.close() then raised RuntimeError('closed badly')" in notes
    part = e.value.partial
    done = int(part.state.round)
    assert part.status == ("interrupted" if done < killed.ROUNDS else "finished")
    assert done >= 12
    np.testing.assert_array_equal(
        part.history.rounds.client_steps, whole.history.rounds.client_steps[:done]
    )
    if saved:
        assert f"{done} rounds are saved in {tmp_path}" in notes
        assert Checkpoints(tmp_path / "checkpoints").numbers() == [done]
        same(fs.simulate(experiment, key, out=out, resume=True), whole)


def test_closing_badly_loses_nothing(whole):
    rows = Rows()
    with pytest.raises(fs.InterruptedRun, match=r"all rounds are done.*closed badly") as e:
        fs.simulate(killed.experiment(0.03), jax.random.key(5), writers=[Broken(0), rows])
    assert rows.closed == 1
    same(e.value.partial, whole)
    assert e.value.partial.status == "finished"


def test_progress_and_writers(whole):
    told, rows = [], Rows()
    experiment = killed.experiment(0.03)
    fs.simulate(experiment, jax.random.key(5), on_progress=told.append, writers=[rows])
    assert told[-1].round == told[-1].num_rounds == killed.ROUNDS
    assert told[-1].seconds_left == 0
    # The first round loads the program, so it says nothing of those to come.
    assert np.isnan(told[0].seconds_left) or told[0].round / told[0].rounds_per_second >= 1
    assert not any(np.isnan(p.seconds_left) for p in told[1:])
    assert [p.round for p in told] == sorted({p.round for p in told})
    assert all(p.rounds_per_second > 0 and p.client_steps_per_second > 0 for p in told)
    assert told[-1].metrics["norm"] == pytest.approx(float(whole.history.evaluation["norm"][-1]))
    assert sorted(rows.rows) == list(range(1, killed.ROUNDS + 1))
    assert rows.rows[3]["train_loss"] == pytest.approx(float(whole.history.rounds.train["loss"][2]))
    assert "norm" not in rows.rows[3]
    assert "norm" in rows.rows[7]
    assert rows.closed == 1


def test_examples_are_arguments_of_the_program_and_not_constants(data, monkeypatch):
    sizes, calls, run = [], [], program.jaxpr_as_fun
    big = fs.FederatedData.from_arrays(
        {"x": np.ones((50_000, 4), np.float32), "y": np.ones(50_000, np.float32)},
        np.arange(50_000) % 8,
    )
    for federation in (data, big):
        experiment = killed.experiment(0.03, federation)
        state = experiment.check(jax.random.key(0))

        def step(inputs, round, carry, experiment=experiment, state=state):
            after, row = experiment.next_round(
                jax.random.key(0), replace(state, server=carry[0], clients=carry[1], round=round)
            )
            return (after.server, after.clients), row

        with monkeypatch.context() as patch:
            patch.setattr(
                program, "jaxpr_as_fun", lambda closed: calls.append(closed) or run(closed)
            )
            carry = state.server, state.clients
            program.compile_program(program.trace_step(step, (), carry), (), carry, 3)
        assert all(isinstance(x, jax.core.Tracer) for x in calls[-1].consts)
        sizes.append(max(x.size for x in calls[-1].consts))
    assert sizes[1] == 200_000 > sizes[0]


def test_refusals(tmp_path, whole):
    experiment, key = killed.experiment(0.03), jax.random.key(5)

    def refused(message, experiment=experiment, key=key, **options):
        with pytest.raises(ValueError, match=message):
            fs.simulate(experiment, key, **options)

    refused("experiment must be an fs.Experiment; got int", experiment=3)
    refused("key must be a typed key", key="0")
    refused("num_rounds must be .*got 0", experiment=experiment._replace(num_rounds=0))
    refused("evaluate_every must be .*got 0", experiment=experiment._replace(evaluate_every=0))
    refused("checkpoint_every must be .*got 0", checkpoint_every=0)
    refused("resume needs out", resume=True)
    refused(
        "must be of a value that evaluate returns; got 'acc'.*returns b, norm",
        stop=fs.reaches("acc", 1.0),
    )
    fs.simulate(experiment._replace(num_rounds=2), key, out=tmp_path, configuration={"lr": 0.03})
    refused("holds an experiment already; resume it", out=tmp_path)
    refused(
        r"num_rounds is 2 there and 60 here; configuration.lr is 0.03 there and null here",
        out=tmp_path,
        resume=True,
    )
    refused(
        r"configuration.lr is 0.03 there and 0.1 here",
        experiment._replace(num_rounds=2),
        out=tmp_path,
        resume=True,
        configuration={"lr": 0.1},
    )
    other = killed.experiment(0.03)._replace(num_rounds=2, params={**zeros(), "b": np.float32(1)})
    refused("first_params is", other, out=tmp_path, resume=True, configuration={"lr": 0.03})
    kept = json.loads((tmp_path / "experiment.json").read_text())
    assert kept["configuration"] == {"lr": 0.03}
    assert Checkpoints(tmp_path / "checkpoints").numbers() == [2]


def test_checkpoints_keep_keys_halves_and_empty_arrays(tmp_path):
    tree = {
        "key": jax.random.split(jax.random.key(3), 2),
        "half": jnp.arange(3, dtype=jnp.bfloat16),
        "none": jnp.zeros((0, 4)),
        "scalar": jnp.int32(7),
        "flag": jnp.array([True, False]),
    }
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(4, flatten("tree", tree), {"stopped": False})
    saved = checkpoints.load()
    assert saved.number == 4
    assert saved.facts == {"stopped": False}
    back = unflatten("tree", tree, saved.arrays)
    np.testing.assert_array_equal(
        jax.random.key_data(back["key"]), jax.random.key_data(tree["key"])
    )
    for name in ("half", "none", "scalar", "flag"):
        assert back[name].dtype == tree[name].dtype
        np.testing.assert_array_equal(back[name], tree[name])
    with pytest.raises(ValueError, match="holds another tree: its leaf 1 is"):
        unflatten("tree", {**tree, "half": jnp.zeros(3)}, saved.arrays)


def test_fedsgd_and_optimizer_states_resume(tmp_path, data):
    algorithm = fs.fedsgd(linear_loss, optax.adam(0.01))
    experiment = fs.Experiment(algorithm, zeros(), data, fs.sampling.uniform(4), 9)
    with jax.numpy_dtype_promotion("standard"):
        whole = fs.simulate(experiment, jax.random.key(1))
        fs.simulate(
            experiment,
            jax.random.key(1),
            out=tmp_path,
            checkpoint_every=2,
            on_progress=stopping(4),
        )
        same(fs.simulate(experiment, jax.random.key(1), out=tmp_path, resume=True), whole)
