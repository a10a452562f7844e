"""Sweeps that several processes share, of which some are killed."""

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import fedjax_sim as fs
from fedjax_sim.report import reading
from fedjax_sim.sweeps import merging, shared_work
from fedjax_sim.sweeps.claims import Claims
from tests.conftest import linear_loss, zeros
from tests.helpers import killed

SECONDS = 300  # that a process may take, of a machine with much else to do


def of(data, rounds=3):
    def experiment(lr):
        algorithm = fs.scaffold(linear_loss, lr, fs.LocalTraining(1, 4))
        evaluate = {"evaluate": lambda params: {"b": params["b"]}}
        return fs.Experiment(algorithm, zeros(), data, fs.sampling.uniform(2), rounds, **evaluate)

    return experiment


RATES = [0.01, 0.02, 0.03, 0.04]
SHARED = {"grid": {"lr": RATES}, "keys": [3, 4]}


def same(results, expected):
    assert [run[:2] for run in results.runs] == [run[:2] for run in expected.runs]
    for a, b in zip(killed.arrays(results), killed.arrays(expected), strict=True):
        np.testing.assert_array_equal(a, b)


def interrupted_after(batches, monkeypatch):
    """A shard that is sent a signal once it has saved so many batches."""
    run_batch, saved = shared_work.run_batch, []

    def run(*arguments):
        columns = run_batch(*arguments)
        saved.append(columns)
        if len(saved) == batches:
            signal.raise_signal(signal.SIGTERM)
        return columns

    monkeypatch.setattr(shared_work, "run_batch", run)


@pytest.fixture(scope="module")
def whole(data):
    return fs.sweep(of(data), **SHARED, side_by_side=1)


def test_shards_share_the_batches_of_one_process(data, whole, tmp_path, monkeypatch):
    """One is interrupted and another completes what is left, with the bits of one process."""
    experiment, shared = of(data), {**SHARED, "side_by_side": 1, "out": tmp_path}
    with monkeypatch.context() as patch:
        interrupted_after(1, patch)
        part = fs.sweep(experiment, **shared, shard="2/2")
    # Its own part of the four batches, each of two devices, is the second half.
    assert [(run.configuration["lr"], run.seed) for run in part.runs] == [(0.03, 3), (0.03, 4)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["batches", "claims", "sweep.json"]

    assert merging.merge(tmp_path, score="b")
    folder = reading.load(tmp_path)
    assert folder.summary["complete"] is False
    assert folder.summary["num_runs"] == 8
    assert folder.summary["score"] == "b"
    np.testing.assert_array_equal(folder.results.runs[1].rounds["b"], part.runs[1].rounds["b"])

    # A run that is alive elsewhere keeps its batch, until it is killed.
    with Claims(tmp_path / "claims").take(0) as claim:
        busy = f"1 batch that a shard is computing, as process {os.getpid()}"
        with pytest.raises(ValueError, match=busy):
            fs.sweep(experiment, **shared, resume=True)
        with monkeypatch.context() as patch:
            patch.setattr(shared_work, "_wait", lambda ends: claim.give_up())
            told = []
            results = fs.sweep(experiment, **shared, shard=(1, 2), on_progress=told.append)
    same(results, whole)
    assert [swept.runs for swept in told] == sorted(swept.runs for swept in told)
    assert reading.load(tmp_path).summary["complete"] is True
    # Who comes later computes nothing, and so does a resume.
    monkeypatch.setattr(shared_work, "run_batch", None)
    same(fs.sweep(experiment, **shared, shard="3/3"), whole)
    same(fs.sweep(experiment, **shared, resume=True), whole)
    same(fs.sweep(experiment, **{**shared, "side_by_side": None}, shard="1/7"), whole)


@pytest.mark.slow
def test_each_shard_has_a_batch(data, tmp_path, monkeypatch):
    """Side by side are as many configurations as give each of n shards a batch."""
    with monkeypatch.context() as patch:
        interrupted_after(1, patch)
        fs.sweep(of(data), **SHARED, out=tmp_path, shard="4/4")
    manifest = json.loads((tmp_path / "sweep.json").read_text())
    # 8 runs are 4 batches for two devices; alone, 2 would be side by side, in one batch.
    assert manifest["side_by_side"] == [1]


@pytest.mark.slow
def test_another_sweep_cannot_be_joined(data, tmp_path):
    fs.sweep(of(data), {"lr": RATES[:1]}, [3], out=tmp_path, shard="1/2")
    refusal = "holds another sweep, and no shard can join it: "
    with pytest.raises(ValueError, match=refusal + "num_rounds is 3 there and 4 here"):
        fs.sweep(of(data, 4), {"lr": RATES[:1]}, [3], out=tmp_path, shard="2/2")
    with pytest.raises(ValueError, match=refusal + "grid is"):
        fs.sweep(of(data), {"lr": RATES[1:2]}, [3], out=tmp_path, shard="2/2")
    moved = {**data.examples, "y": data.examples["y"] + 1}
    other = dataclasses.replace(data, examples=moved)
    with pytest.raises(ValueError, match=refusal + "federation is"):
        fs.sweep(of(other), {"lr": RATES[:1]}, [3], out=tmp_path, shard="2/2")
    manifest = tmp_path / "sweep.json"
    manifest.write_text(manifest.read_text().replace('"numpy": "', '"numpy": "0.'))
    with pytest.raises(ValueError, match=refusal + "versions.numpy is"):
        fs.sweep(of(data), {"lr": RATES[:1]}, [3], out=tmp_path, shard="2/2")
    with pytest.raises(ValueError, match="shard needs out"):
        fs.sweep(of(data), {"lr": RATES[:1]}, [3], shard="2/2")
    with pytest.raises(ValueError, match="1 <= i <= n"):
        fs.sweep(of(data), {"lr": RATES[:1]}, [3], out=tmp_path, shard="3/2")


@pytest.mark.slow
def test_a_batch_that_fails_is_given_up(data, tmp_path):
    def fail(swept):
        raise ConnectionError("nobody listens")

    with pytest.raises(fs.InterruptedRun, match="a round was not told of"):
        fs.sweep(of(data), {"lr": RATES[:1]}, [3], out=tmp_path, shard="1/1", on_progress=fail)
    assert Claims(tmp_path / "claims").alive() == {}


def test_a_folder_without_a_sweep_has_nothing_to_merge(tmp_path):
    with pytest.raises(ValueError, match=r"folder must hold a sweep, with its sweep.json"):
        merging.merge(tmp_path)
    (tmp_path / "sweep.json").write_text('{"names": [], "grid": [], "seeds": []}')
    assert not merging.merge(tmp_path)


@pytest.mark.slow
def test_two_of_four_are_killed(tmp_path):
    """At random times: every configuration is there once, with the bits of one process."""
    out = tmp_path / "shared"
    chance = random.Random(5)
    shards = [f"{i}/4" for i in (1, 2, 3, 4)]
    processes = {}
    try:
        for shard in shards:
            command = [sys.executable, "-m", "tests.helpers.killed", "sweep", str(out), shard]
            log = (tmp_path / f"log-{shard[0]}.txt").open("wb")
            processes[shard] = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        victims = chance.sample(shards, 2)
        for victim in victims:
            # One is killed while it computes, the other whenever it may be.
            until = time.monotonic() + SECONDS
            while not list((out / "claims").glob("*")) and time.monotonic() < until:
                time.sleep(0.05)
            time.sleep(chance.uniform(0, 2))
            processes[victim].kill()
            processes[victim].wait()
        for shard in set(shards) - {*victims}:
            code = processes[shard].wait(timeout=SECONDS)
            assert code == 0, (tmp_path / f"log-{shard[0]}.txt").read_text()[-3000:]
    finally:
        for process in processes.values():
            process.kill()
            process.wait()

    whole = killed.sweep(tmp_path / "whole")
    for shard in set(shards) - {*victims}:
        with np.load(out / f"result-{shard[0]}-of-4.npz") as saved:
            for name, expected in zip(saved.files, killed.arrays(whole), strict=True):
                np.testing.assert_array_equal(saved[name], expected)
    table = reading.load(out)
    assert table.summary["complete"] is True
    assert [run[:2] for run in table.results.runs] == [run[:2] for run in whole.runs]
    assert len(table.results.runs) == 15
    assert not list((out / "batches").glob("*.[0-9]"))
