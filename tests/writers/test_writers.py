"""Writers: CSV, TensorBoard's event files read back, Weights & Biases offline and by a stub."""

import csv
import struct
import sys
import types

import jax
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from tests.conftest import linear_loss, zeros

KEY = jax.random.key(0)


def experiment(data, rounds=6, every=3):
    algorithm = fs.fedavg(linear_loss, optax.sgd(0.02), fs.LocalTraining(1, 4))
    evaluate = fs.evaluator(linear_loss, data)
    return fs.Experiment(
        algorithm,
        zeros(),
        data,
        fs.sampling.uniform(4),
        rounds,
        evaluate=evaluate,
        evaluate_every=every,
    )


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_csv_of_a_run(data, tmp_path):
    path = tmp_path / "made" / "run.csv"
    simulation = fs.simulate(experiment(data), KEY, writers=[fs.writers.csv(path)])
    rows, rounds = read(path), simulation.history.rounds
    assert [row["round"] for row in rows] == list("123456")
    np.testing.assert_array_equal(
        np.array([row["train_loss"] for row in rows], np.float32), rounds.train["loss"]
    )
    assert [float(row["client_steps"]) for row in rows] == list(rounds.client_steps)
    # Measured in rounds 3 and 6: a column that came with the third row.
    assert [row["test_loss"] != "" for row in rows] == [False, False, True] * 2
    assert np.float32(rows[-1]["test_loss"]) == simulation.history.evaluation["test_loss"][-1]


def test_csv_of_a_resumed_run_is_that_of_a_whole_one(data, tmp_path):
    whole, cut = tmp_path / "whole.csv", tmp_path / "cut.csv"
    fs.simulate(experiment(data), KEY, writers=[fs.writers.csv(whole)])
    fs.simulate(experiment(data), KEY, writers=[fs.writers.csv(cut)])
    text = cut.read_bytes()
    assert text == whole.read_bytes()
    lines = text.splitlines(keepends=True)
    # Killed in the middle of a line, with rounds behind the last checkpoint.
    cut.write_bytes(b"".join(lines[:5]) + lines[5][:7])
    writer = fs.writers.csv(cut)
    rows = read(whole)
    for row in rows[2:]:
        values = {k: float(x) for k, x in row.items() if k != "round" and x != ""}
        writer.write(int(row["round"]), values)
        assert cut.read_bytes() == b"".join(lines[: int(row["round"]) + 1])  # on its way to disk
    writer.close()
    assert cut.read_bytes() == text


def test_csv_widens_replaces_and_begins_afresh(tmp_path):
    path = tmp_path / "run.csv"
    writer = fs.writers.csv(path)
    writer.write(1, {"a": 1.0, 'odd, "name"': 2.0})
    writer.write(2, {"a": float("nan"), "b": 5e-324})
    writer.write(3, {"b": 7.0, "a": float("inf")})
    head = 'round,a,"odd, ""name""",b'
    assert path.read_text().splitlines() == [head, "1,1.0,2.0,", "2,nan,,5e-324", "3,inf,,7.0"]
    writer.write(2, {"a": 3.0})
    assert path.read_text().splitlines() == [head, "1,1.0,2.0,", "2,3.0,,"]
    writer.close()
    writer.close()
    writer.write(3, {"c": 1.0})  # a writer that was closed goes on
    assert path.read_text().splitlines() == [head + ",c", "1,1.0,2.0,,", "2,3.0,,,", "3,,,,1.0"]
    writer.close()
    other = fs.writers.csv(path)
    assert "3,,,,1.0" in path.read_text()  # nothing is lost before the first write
    other.write(1, {"z": 0.0})
    other.close()
    assert path.read_text() == "round,z\n1,0.0\n"
    assert list(tmp_path.iterdir()) == [path]


def test_csv_refuses_what_is_not_its_own(tmp_path):
    path = tmp_path / "notes.txt"
    for text in ("date,what\n1,2\n", "one line without an end", "\n"):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"whose first column is 'round'; got .*notes"):
            fs.writers.csv(path)
        assert path.read_text() == text
    with pytest.raises(ValueError, match="must not be named 'round'"):
        fs.writers.csv(tmp_path / "new.csv").write(1, {"round": 2.0})
    assert not (tmp_path / "new.csv").exists()


def events(folder):
    """The events of all files in order: TFRecords, length and data with a checksum behind each."""
    from tensorboardX.proto.event_pb2 import Event

    for path in sorted(folder.iterdir()):
        blob, at = path.read_bytes(), 0
        while at < len(blob):
            (length,) = struct.unpack_from("<Q", blob, at)
            yield Event.FromString(blob[at + 12 : at + 12 + length])
            at += 16 + length


def shown(folder):
    """tag -> {step: value} as TensorBoard has it: a START drops the steps from its own on."""
    from tensorboardX.proto.event_pb2 import SessionLog

    found = {}
    for event in events(folder):
        if event.session_log.status == SessionLog.START:
            for values in found.values():
                for step in [step for step in values if step >= event.step]:
                    del values[step]
        for value in event.summary.value:
            found.setdefault(value.tag, {})[event.step] = value.simple_value
    return found


def test_tensorboard(data, tmp_path):
    pytest.importorskip("tensorboardX")
    simulation = fs.simulate(
        experiment(data), KEY, writers=[fs.writers.tensorboard(tmp_path / "run")]
    )
    found = shown(tmp_path / "run")
    history = simulation.history
    assert list(found["train_loss"]) == [1, 2, 3, 4, 5, 6]
    np.testing.assert_array_equal(
        np.float32(list(found["train_loss"].values())), history.rounds.train["loss"]
    )
    assert found["test_loss"] == {t: history.evaluation["test_loss"][t - 1] for t in (3, 6)}
    assert "evaluated" not in found


def test_a_folder_that_cannot_be_written_is_refused_before_a_round(tmp_path):
    pytest.importorskip("tensorboardX")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be written: it is a file"):
        fs.writers.tensorboard(tmp_path / "file")


def test_tensorboard_after_a_resume(tmp_path):
    pytest.importorskip("tensorboardX")
    first = fs.writers.tensorboard(tmp_path)
    for round in (1, 2, 3, 4):
        first.write(round, {"loss": 1.0})
    first.close()
    second = fs.writers.tensorboard(tmp_path)  # within the same second
    second.write(3, {"loss": 2.0})
    second.close()
    assert len(list(tmp_path.iterdir())) == 2
    assert shown(tmp_path)["loss"] == {1: 1, 2: 1, 3: 2}


def stub(monkeypatch):
    """In the place of wandb: what it was called with."""
    calls = []

    class Run:
        def log(self, values, step):
            calls.append((step, values))

        def finish(self):
            calls.append("finish")

    def init(**settings):
        calls.append(settings)
        return Run()

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    return calls


def test_wandb_is_told_each_round(data, tmp_path, monkeypatch):
    calls = stub(monkeypatch)
    writer = fs.writers.wandb(
        "digits", "first", configuration={"lr": 0.02}, folder=tmp_path, mode="online", run_id="a1"
    )
    assert calls == []
    fs.simulate(experiment(data), KEY, writers=[writer])
    settings, *rounds, last = calls
    assert settings == {
        "project": "digits",
        "name": "first",
        "mode": "online",
        "config": {"lr": 0.02},
        "dir": str(tmp_path),
        "id": "a1",
        "resume": "allow",
    }
    assert [step for step, _ in rounds] == [1, 2, 3, 4, 5, 6]
    assert ["test_loss" in values for _, values in rounds] == [False, False, True] * 2
    assert last == "finish"
    with pytest.raises(ValueError, match='mode must be "offline" or "online"; got \'disabled\''):
        fs.writers.wandb("digits", mode="disabled")


def test_wandb_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.chdir(tmp_path)
    writer = fs.writers.wandb("digits", "first", configuration={"lr": 0.02}, folder=tmp_path)
    for round in (1, 2, 3):
        writer.write(round, {"train_loss": 1 / round})
    writer.close()
    (path,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    blob = path.read_bytes()
    assert b"train_loss" in blob
    assert b"digits" in blob


@pytest.mark.parametrize(
    ("name", "module", "extra"),
    [("tensorboard", "tensorboardX", "tensorboard"), ("wandb", "wandb", "wandb")],
)
def test_a_missing_package_names_its_extra(tmp_path, monkeypatch, name, module, extra):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"pip install fedjax-sim\[{extra}\]"):
        getattr(fs.writers, name)(tmp_path)
