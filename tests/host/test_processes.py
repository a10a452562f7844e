"""Runs over a mesh of several processes: two of this machine, which really are started."""

import json

import numpy as np
import pytest

import fedjax_sim as fs
from tests.conftest import MESH
from tests.helpers import several


def same(numbers, expected):
    for x, y in zip(numbers, expected, strict=True):
        np.testing.assert_array_equal(np.array(x), np.array(y))


def is_interrupted_alike(first, second, whole):
    """Both ended after the same round, saved, and went on to what an uninterrupted run has."""
    for answer in (first, second):
        assert answer["status"] == "interrupted"
        assert answer["round"] == answer["rows"] == answer["saved"][-1]
        assert 10 <= answer["round"] < several.ROUNDS
        assert answer["model"] == several.ROUNDS
        same(answer["numbers"], whole)
    assert first["round"] == second["round"]
    # The first process alone tells of the rounds.
    assert first["told"][0] == 1
    assert first["told"][-1] == first["round"]
    assert second["told"] == []


@pytest.fixture(scope="module")
def whole():
    """Of one process, over as many devices."""
    return several.numbers(fs.simulate(several.experiment(MESH), 5))


@pytest.mark.slow
def test_two_processes(tmp_path, whole):
    """One test for all that a pair of processes does in a few seconds, since it is started once."""
    first, second = several.start(tmp_path, ["replicate", "interrupted", "refused", "told"])

    is_interrupted_alike(first["interrupted"], second["interrupted"], whole)

    for answers in (first, second):
        placed = answers["replicate"]
        assert placed["values"] == [[0, 1, 2], [3, 4, 5]]
        assert placed["bits"] == [0, 3]
        assert placed["devices"] == 2
        assert placed["own"] == placed["local"]
        alike = "ValueError: tree must be the same on all processes of the mesh; that of process 1"
        assert placed["other values"] == f"{alike} has other values than that of process 0"
        assert placed["other shapes"].startswith(f"{alike} has other shapes or dtypes than that of")
        assert "tree must hold arrays that this process has all of; got" in placed["dealt"]
    assert first["replicate"]["own"] != second["replicate"]["own"]
    assert first["replicate"]["cores"] == [0]
    assert second["replicate"]["cores"] == [1]
    assert second["replicate"]["of others"] == (
        "ValueError: mesh must have a device of the process that uses it, which is process 1; got "
        "devices of process 0"
    )

    alike = "ValueError: experiment must be the same on all processes of its mesh; "
    together = {
        "configuration": "configuration.lr is 0 at process 0 and 1 at process 1",
        "rate": "the traced program differs: the algorithm (its loss, optimizers, rates or another "
        "constant of it) differs",
        "strategy": "execution, or how it runs a round, is another at process 1 than at process 0",
        "folder": "is_saved is true at process 0 and false at process 1",
    }
    for name, says in together.items():
        assert first["refused"][name] == second["refused"][name] == alike + says
    for name, by, to in (
        ("argument", second, first),
        ("rounds", second, first),
        ("there", first, second),
    ):
        kind, says = by["refused"][name].split(": ", 1)
        index = 1 if by is second else 0
        assert to["refused"][name] == f"{kind}: process {index}: {says}"
    assert "checkpoint_every must be a whole number, at least 1" in second["refused"]["argument"]
    assert "num_rounds must be a whole number, at least 1" in second["refused"]["rounds"]
    assert "holds an experiment already; resume it" in first["refused"]["there"]
    for answers in (first, second):
        assert "mesh must be of devices of this process" in answers["refused"]["sweep"]

    encode = "Object of type object is not JSON serializable"
    assert second["told"] == {
        "encode": f"TypeError: {encode}",
        "compile": "MemoryError: no room for the program",
        "leave": "SystemExit: enough",
    }
    assert first["told"] == {
        "encode": f"RuntimeError: process 1: TypeError({encode!r})",
        "compile": "RuntimeError: process 1: MemoryError('no room for the program')",
        "leave": "RuntimeError: process 1: SystemExit('enough')",
    }


@pytest.mark.slow
def test_two_processes_that_fail(tmp_path, whole):
    """Signals and errors of one of them are the end of both, and what is saved goes on."""
    jobs = ["whole", "windows", "interrupted_by_the_other", "fails", "left_by_hand", "unseen"]
    first, second = several.start(tmp_path, jobs)

    best = fs.simulate(several.experiment(MESH), 5, keep_model="best", metric="norm").best
    for answers in (first, second):
        assert answers["whole"]["status"] == "finished"
        same(answers["whole"]["numbers"], whole)
        same(answers["whole"]["best"], [best.params["w"], best.round])

    windowed = several.numbers(fs.simulate(several.on_source(MESH), 5, capacity=60))
    for answers in (first, second):
        same(answers["windows"], windowed)

    is_interrupted_alike(*(x["interrupted_by_the_other"] for x in (first, second)), whole)

    failed = "a round was not told of: "
    assert first["fails"]["message"] == f"{failed}OSError('no line for round 12')"
    by_0 = "process 0: OSError('no line for round 12')"
    assert second["fails"]["message"] == f"{failed}{RuntimeError(by_0)!r}"
    assert first["fails"]["round"] == second["fails"]["round"] == 15
    for answers in (first, second):
        same(answers["fails"]["numbers"], whole)

    for name in ("KeyboardInterrupt", "SystemExit"):
        by_0 = RuntimeError(f"process 0: {name}('enough')")
        told = f"InterruptedRun: {failed}{by_0!r}"
        assert second["left_by_hand"][name]["message"].startswith(told)
        assert first["left_by_hand"][name]["message"] == f"{name}: enough"
        for answers in (first, second):
            assert answers["left_by_hand"][name]["saved"] == 10
            assert answers["left_by_hand"]["resumed"] == "finished"

    says = "out must be a folder that all processes see; checkpoint 3, which the writer read"
    assert second["unseen"].startswith(f"ValueError: {says}")
    assert first["unseen"].startswith(f"ValueError: process 1: {says}")
    assert "No such file or directory" in first["unseen"]


@pytest.mark.slow
def test_two_processes_of_two_devices(tmp_path):
    """Sums over four devices are the same to rounding: what is added first may differ."""
    (alone,) = several.start(tmp_path / "one", ["whole"], count=1, devices=4)
    pair = several.start(tmp_path / "two", ["whole"], count=2, devices=2)
    same(pair[0]["whole"]["numbers"], pair[1]["whole"]["numbers"])
    for x, y in zip(pair[0]["whole"]["numbers"], alone["whole"]["numbers"], strict=True):
        np.testing.assert_allclose(np.array(x), np.array(y), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_a_process_that_is_gone_is_told(tmp_path):
    with pytest.raises(AssertionError, match="ended with -9"):
        several.start(tmp_path, ["left"])
    message = json.loads((tmp_path / "answers-0.json").read_text())
    assert message.startswith("LostProcessError: another process of the run is gone")


@pytest.mark.slow
def test_a_process_that_was_never_connected_ends_the_others_by_its_heartbeat(tmp_path):
    """JAX ends them, after the seconds that `jax.distributed.initialize` was given."""
    with pytest.raises(AssertionError, match=r"(?s)ended with -6:.*stopped sending heartbeats"):
        several.start(tmp_path, ["left_early"])
