"""Who computes which batch: claims alive, given up, lost, and wanted by several at once."""

import json
import multiprocessing
import os
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fedjax_sim.core.files import make_file
from fedjax_sim.sweeps import claims as claims_module
from fedjax_sim.sweeps.claims import Claims
from fedjax_sim.sweeps.shards import Shard, shard_of


def test_a_claim_is_held_and_given_up(tmp_path):
    claims = Claims(tmp_path / "claims", "1/2")
    assert claims.alive() == {}
    with claims.take(3) as claim:
        assert claim.generation == 0
        assert claims.take(3) is None
        assert claims.alive() == {3: f"process {os.getpid()} of {socket.gethostname()}"}
        assert claims.take(4) is not None
    assert list(claims.alive()) == [4]
    successor = claims.take(3)
    assert successor.generation == 1
    assert Claims(tmp_path / "claims").take(3) is None


def of_another_machine(monkeypatch, name="far away"):
    monkeypatch.setattr(claims_module, "_place", lambda: name)


def test_one_of_another_machine_is_lost_once_it_is_not_touched(tmp_path, monkeypatch):
    claims = Claims(tmp_path, lost_seconds=100)
    with monkeypatch.context() as patch:
        of_another_machine(patch)
        claim = claims.take(7)
    assert claims.take(7) is None
    now = time.time()
    os.utime(claim.path, (now - 90, now - 90))
    assert claims.take(7) is None
    os.utime(claim.path, (now - 110, now - 110))
    assert claims.take(7).generation == 1


def test_its_owner_touches_it(tmp_path, monkeypatch):
    of_another_machine(monkeypatch)
    claims = Claims(tmp_path, beat_seconds=0.01, lost_seconds=100)
    with claims.take(0) as claim:
        os.utime(claim.path, (1000, 1000))
        until = time.monotonic() + 30
        while claim.path.stat().st_mtime < 2000:
            assert time.monotonic() < until
            time.sleep(0.01)


def test_a_touch_that_fails_is_tried_again(tmp_path, monkeypatch):
    of_another_machine(monkeypatch)
    touch, failed = os.utime, []

    def away(path, *times):
        if len(failed) < 3 and not times:
            failed.append(path)
            raise OSError("the folder is away for a moment")
        touch(path, *times)

    monkeypatch.setattr(claims_module.os, "utime", away)
    with Claims(tmp_path, beat_seconds=0.01, lost_seconds=100).take(0) as claim:
        touch(claim.path, (1000, 1000))
        until = time.monotonic() + 30
        while claim.path.stat().st_mtime < 2000:
            assert time.monotonic() < until
            time.sleep(0.01)
    assert len(failed) == 3


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells which start of a machine it is")
def test_another_machine_of_the_same_name_is_another_place(tmp_path, monkeypatch):
    """Its process has a number that none here has, and is alive all the same."""
    claims = Claims(tmp_path)
    claim = claims.take(0)
    owner = json.loads(claim.path.read_text())
    start = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert start in owner["place"]
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    there = {**owner, "pid": ended.pid, "place": owner["place"].replace(start, "another-start")}
    claim.path.write_text(json.dumps(there))
    assert claims.take(0) is None
    claim.path.write_text(json.dumps({**owner, "pid": ended.pid}))
    assert claims.take(0).generation == 1


def test_the_time_is_that_of_the_files(tmp_path, monkeypatch):
    """This machine's clock, which may be wrong by hours, is not asked."""
    of_another_machine(monkeypatch)
    claims = Claims(tmp_path)
    claims.take(0)
    monkeypatch.setattr(time, "time", lambda: 1e12)
    assert claims.take(0) is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000000.0"]


@pytest.mark.skipif(os.name != "posix", reason="Windows does not tell whether a process runs")
def test_one_of_a_process_that_ended_is_lost_at_once(tmp_path):
    code = (
        "import sys, pathlib; from fedjax_sim.sweeps.claims import Claims\n"
        "assert Claims(pathlib.Path(sys.argv[1])).take(5) is not None"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path], check=True)
    assert Claims(tmp_path).take(5).generation == 1


def test_one_whose_owner_was_killed_before_it_wrote(tmp_path):
    (tmp_path / "000002.0").touch()
    claims = Claims(tmp_path)
    assert claims.take(2) is None
    os.utime(tmp_path / "000002.0", (0, 0))
    assert claims.take(2).generation == 1


def test_many_threads_that_want_the_same(tmp_path):
    """Each batch, also one that was lost, goes to one of them."""
    for number in range(0, 20, 2):
        (tmp_path / f"{number:06d}.0").touch()
        os.utime(tmp_path / f"{number:06d}.0", (0, 0))
    barrier = threading.Barrier(8)

    def take_all(_):
        barrier.wait()
        return [number for number in range(20) if Claims(tmp_path).take(number) is not None]

    with ThreadPoolExecutor(8) as pool:
        taken = [number for numbers in pool.map(take_all, range(8)) for number in numbers]
    assert sorted(taken) == list(range(20))


def take_some(folder, start, queue):
    claims = Claims(folder)
    start.wait()
    mine = [number for number in range(40) if claims.take(number) is not None]
    queue.put(mine)
    start.wait()  # while it lives, its claims are its own


@pytest.mark.skipif(os.name != "posix", reason="forks")
@pytest.mark.slow
def test_many_processes_that_want_the_same(tmp_path):
    spawn = multiprocessing.get_context("spawn")
    start, queue = spawn.Barrier(3), spawn.Queue()
    processes = [spawn.Process(target=take_some, args=(tmp_path, start, queue)) for _ in range(3)]
    for process in processes:
        process.start()
    taken = [number for _ in processes for number in queue.get(timeout=120)]
    for process in processes:
        process.join()
    assert sorted(taken) == list(range(40))


def test_a_file_that_one_of_many_makes(tmp_path):
    path = tmp_path / "sweep.json"
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda i: make_file(path, f"{i}".encode() * 1000), range(8)))
    assert sum(made) == 1
    assert path.read_bytes() == str(made.index(True)).encode() * 1000
    assert list(tmp_path.iterdir()) == [path]


def test_shards():
    assert shard_of(None) is None
    assert shard_of("1/1") == Shard(1, 1)
    orders = [Shard(i, 4).order(range(10)) for i in (1, 2, 3, 4)]
    assert all(sorted(order) == list(range(10)) for order in orders)
    assert [order[0] for order in orders] == [0, 2, 5, 7]
    # More shards than batches: the last ones begin at a batch, too.
    assert [Shard(i, 8).order(range(2))[0] for i in (1, 4, 5, 8)] == [0, 0, 1, 1]


@pytest.mark.parametrize(
    "shard", ["0/4", "5/4", "4", "1/0", "a/b", "-1/4", "auto/0", (0, 4), (1.0, 2), (1, 2, 3), 3]
)
def test_a_shard_that_is_none(shard):
    with pytest.raises(ValueError, match='shard must be "i/n" with 1 <= i <= n') as error:
        shard_of(shard)
    assert repr(shard) in str(error.value)


SLURM = {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_COUNT": "4"}
LSF = {"LSB_JOBINDEX": "2", "LSB_JOBINDEX_END": "9"}
SGE = {"SGE_TASK_ID": "5", "SGE_TASK_FIRST": "1", "SGE_TASK_LAST": "7", "SGE_TASK_STEPSIZE": "2"}


@pytest.mark.parametrize(
    ("shard", "environment", "expected"),
    [
        ("auto", SLURM | {"SLURM_ARRAY_TASK_STEP": "2"}, (4, 4)),  # --array=1-7:2
        ("auto", SLURM, (3, 4)),  # --array=1,2,5,7: the numbers wrap around
        ("auto", SGE, (3, 4)),
        ("auto", LSF, (2, 9)),
        ("auto", {**LSF, "LSB_JOBINDEX": "0", **SGE}, (3, 4)),  # 0: LSF's job is no array
        ("auto", {"SGE_TASK_ID": "undefined", **LSF}, (2, 9)),
        ("auto/16", {"JOB_COMPLETION_INDEX": "0"}, (1, 16)),
        ("auto/16", {"JOB_COMPLETION_INDEX": "15"}, (16, 16)),
        ("auto/3", {"PBS_ARRAY_INDEX": "3"}, (1, 3)),  # -J 1-3, whose last wraps around
        ("auto/2", SLURM, (1, 2)),
    ],
)
def test_what_a_scheduler_says(shard, environment, expected):
    assert shard_of(shard, environment) == expected


def test_a_scheduler_that_says_too_little():
    with pytest.raises(ValueError, match="shard auto needs one of SLURM_ARRAY_TASK_ID, JOB_COMPL"):
        shard_of("auto", {})
    with pytest.raises(ValueError, match=r'JOB_COMPLETION_INDEX, beside which.* give "auto/n"'):
        shard_of("auto", {"JOB_COMPLETION_INDEX": "3"})
    with pytest.raises(ValueError, match="reads SGE_TASK_ID, which must be a number; got 'x'"):
        shard_of("auto", {"SGE_TASK_ID": "x"})
