"""Rows of clients' states on a disk: any order of writes, snapshots and returns to them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_sim.data import ClientStates

K = 6
FIRST = {"w": np.array([0.5, -1.0], np.float32), "n": (np.array(3, np.int8), np.zeros(0))}
ACTIONS = st.lists(
    st.one_of(
        st.lists(st.integers(0, K - 1), min_size=1, max_size=4, unique=True).map(
            lambda ids: ("write", ids)
        ),
        st.sampled_from([("save", ()), ("killed", ()), ("killed, and the last is lost", ())]),
    ),
    max_size=30,
)


def states(path):
    return ClientStates(path / "states" / "rows.bin", K, FIRST)


def value(number):
    return {
        "w": np.array([number, -number], np.float32),
        "n": (np.array(number % 100, np.int8), np.zeros(0)),
    }


@settings(max_examples=60, deadline=None)
@given(actions=ACTIONS)
def test_snapshots_are_what_they_were(tmp_path_factory, actions):
    """Of two snapshots that are kept, either can be gone back to, whatever was written since."""
    folder = tmp_path_factory.mktemp("rows")
    disk, now, saved, number = states(folder), dict.fromkeys(range(K), None), [], 0
    disk.begin()
    saved.append((disk.snapshot(), dict(now)))
    disk.keep_snapshot()
    for action, ids in actions:
        if action == "write":
            number += 1
            now |= dict.fromkeys(ids, number)
            rows = [value(number) for _ in ids]
            disk.write(
                np.array(ids),
                {
                    "w": np.stack([x["w"] for x in rows]),
                    "n": tuple(np.stack([x["n"][i] for x in rows]) for i in range(2)),
                },
            )
        elif action == "save":
            saved.append((disk.snapshot(), dict(now)))
            disk.keep_snapshot()
        else:
            if action != "killed" and len(saved) > 1:
                saved.pop()
            disk = states(folder)
            snapshot, now = saved[-1][0], dict(saved[-1][1])
            disk.restore(snapshot)
            saved = saved[-1:] if action != "killed" else saved
        saved = saved[-2:]
        read = disk.read(np.arange(K))
        for k, expected in now.items():
            wanted = FIRST if expected is None else value(expected)
            assert read["w"][k].tolist() == wanted["w"].tolist()
            assert read["n"][0][k] == wanted["n"][0]
        assert disk.is_written.tolist() == [x is not None for x in now.values()]


def test_rows_are_used_again(tmp_path):
    """A file has at most the rows of two snapshots and those that were written since."""
    disk, ids = states(tmp_path), np.arange(K)
    disk.begin()
    for number in range(20):
        for _ in range(3):
            disk.write(ids, disk.read(ids))
        disk.snapshot()
        disk.keep_snapshot()
        assert disk.path.stat().st_size <= 3 * K * disk.row_bytes, number


def test_one_process_writes_at_a_time(tmp_path):
    disk, other = states(tmp_path), states(tmp_path)
    with disk.alone():
        disk.begin()
        with pytest.raises(ValueError, match=r"no other run is at work; another one writes .*rows"):
            other.alone().__enter__()
    with other.alone():
        other.begin()


def test_rows_that_were_handed_out_are_compared_at_each_read(tmp_path):
    """A run that goes on from them writes over rows that its own checkpoints do not need."""
    disk, ids = states(tmp_path), np.arange(K)
    disk.begin()
    disk.write(ids, disk.read(ids))
    snapshot = disk.snapshot()
    disk.keep_snapshot()
    disk.compare_each_read()
    assert disk.read(ids)["w"][3].tolist() == [0.5, -1]
    again = states(tmp_path)
    again.restore(snapshot)
    for _ in range(4):
        read = again.read(ids)
        again.write(ids, {**read, "w": read["w"] + 1})
        again.snapshot()
        again.keep_snapshot()
    with pytest.raises(ValueError, match=r"a run that went on in this folder may have replaced"):
        disk.read(ids)


def test_what_is_read_and_damaged(tmp_path):
    disk = states(tmp_path)
    disk.begin()
    assert disk.read(np.array([4, 1]), num_rows=3)["w"].tolist() == [[0.5, -1], [0.5, -1], [0, 0]]
    disk.write(np.array([4]), disk.read(np.array([4])))
    snapshot = disk.snapshot()
    disk.path.write_bytes(b"\1" * disk.row_bytes)
    again = states(tmp_path)
    again.restore(snapshot)
    with pytest.raises(ValueError, match=r"rows.bin is damaged: the state of client 4, bytes 0"):
        again.read(np.array([4]))
    for ids, message in [([6], "got 6"), ([-1], "got -1"), ([0.5], "float64"), ([[1]], "one axis")]:
        with pytest.raises(ValueError, match=message):
            again.read(np.array(ids))
