"""The command line, as a user meets it: in a process of its own where that matters."""

import csv
import errno
import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from fedjax_sim.cli import machine, main
from tests.conftest import slow_after

FILES = {
    "summary.json",
    "history.csv",
    "compare.png",
    "table.csv",
    "rounds.csv",
    "configuration.toml",
}
RESUMED_BY = {"sweep.json", "batches"}
SMALL = ("--rounds", "4", "--seeds", "2", "--fractions", "0.2", "0.5", "--clients", "10")


def tiny_compare(out, rounds, seeds):
    """The command of a comparison of one mode, for a process of its own."""
    options = f"--rounds {rounds} --seeds {seeds} --clients 10 -C 0.2 --modes selected".split()
    return [sys.executable, "-m", "fedjax_sim.cli", "compare", *options, "--out", str(out)]


def compare(*options, out):
    return main(["compare", "--out", str(out), *options])


def test_compare_writes_what_it_promises(tmp_path, capsys):
    modes = ("selected", "all_clients")  # one client is trained in all of them, below
    assert compare(*SMALL, "--modes", *modes, "--target", "0.3", out=tmp_path) == 0
    said = capsys.readouterr().out
    for mode in modes:
        assert said.count(f" {mode} ") >= 2
    assert "all_clients = w + (n_V/n) (selected - w)" in said
    assert "all_clients: the mean of all K clients" in said
    assert "uniform: " not in said  # a mode that is not compared
    assert {path.name for path in tmp_path.iterdir()} == FILES | RESUMED_BY
    assert (tmp_path / "compare.png").read_bytes().startswith(b"\x89PNG")

    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["complete"]
    assert summary["seeds"] == [0, 1]
    assert summary["configuration"]["partition"] == "dirichlet"
    assert summary["configuration"]["alpha"] == 0.3
    assert {"jax", "jaxlib", "fedjax-sim", "python"} <= set(summary["versions"])
    size = 4 * 650  # 8 x 8 x 10 weights and 10 biases
    assert summary["bytes"] == {"down": size, "up": size}
    assert summary["bytes_of"].startswith("one message to a client (down)")
    for row in summary["rows"]:
        m = {0.2: 2, 0.5: 5}[row["fraction"]]
        receivers = 10 if row["mode"] == "all_clients" else m
        assert row["cohort"] == m
        assert row["megabytes_down"] == pytest.approx(4 * receivers * size / 1e6)
        assert row["megabytes_up"] == pytest.approx(4 * m * size / 1e6)
        assert row["megabytes_up_all_send"] == pytest.approx(4 * 10 * size / 1e6)

    with (tmp_path / "history.csv").open() as file:
        history = list(csv.DictReader(file))
    assert len(history) == 2 * 2 * 2 * 4  # fractions, modes, seeds, rounds
    last = [h for h in history if h["round"] == "4"]
    for row in summary["rows"]:
        scores = [
            float(h["score"])
            for h in last
            if (h["mode"], float(h["fraction"])) == (row["mode"], row["fraction"])
        ]
        assert np.mean(scores) == pytest.approx(row["score_mean"], abs=1e-5)
        assert np.std(scores, ddof=1) == pytest.approx(row["score_std"], abs=1e-5)
    one = [h for h in history if (h["mode"], h["seed"], h["fraction"]) == ("selected", "0", "0.2")]
    assert [int(h["bytes_down"]) for h in one] == [2 * size * t for t in (1, 2, 3, 4)]


@pytest.mark.slow
def test_modes_coincide_where_the_identity_says(tmp_path):
    common = ("--clients", "10", "--rounds", "3", "--seeds", "1", "--partition", "iid")
    common += ("--modes", "selected", "all_clients", "unbiased")
    assert compare(*common, "-C", "1", out=tmp_path / "everyone") == 0
    rows = json.loads((tmp_path / "everyone" / "summary.json").read_text())["rows"]
    scores = {row["mode"]: row["score_mean"] for row in rows}
    assert scores["selected"] == pytest.approx(scores["all_clients"], abs=1e-6)
    assert scores["selected"] == pytest.approx(scores["unbiased"], abs=1e-6)


@pytest.mark.slow
def test_wind_is_a_regression(tmp_path, capsys):
    options = ("--dataset", "wind", "--rounds", "5", "--seeds", "1", "-C", "0.5", "-B", "full")
    assert compare(*options, "--modes", "selected", out=tmp_path) == 0
    assert "R^2" in capsys.readouterr().out
    configuration = json.loads((tmp_path / "summary.json").read_text())["configuration"]
    assert configuration["partition"] == "natural"
    assert configuration["clients"] == 10
    assert configuration["batch_size"] is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fractions = 0.1", "fractions must be a list of numbers; got 0.1"),
        ("modes = [1]", r"modes must be a list of names; got \[1\]"),
        ("seeds = true", "seeds must be a whole number.*got True"),
        ("fraction = 0.1", "unknown name 'fraction'; did you mean 'fractions'"),
        ("mu = 0.1", "mu belongs to algorithm fednova, fedprox and moon"),
    ],
)
def test_a_bad_file_ends_with_one_line_and_code_2(tmp_path, capsys, text, message):
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(SystemExit) as exit:
        compare(str(tmp_path / "mine.toml"), out=tmp_path / "out")
    assert exit.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line)
    assert not (tmp_path / "out").exists()


def test_a_comparison_that_is_refused_removes_nothing(tmp_path, capsys):
    options = (*SMALL, "--modes", "selected", "--rounds", "1", "--fractions", "0.2")
    assert compare(*options, out=tmp_path / "out") == 0
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.is_file()}
    (tmp_path / "narrow.py").write_text(
        "import fedjax_sim as fs\n\n\ndef model(input_shape):\n"
        "    return fs.models.logistic_regression(input_shape, 3)\n"
    )
    model = f"{tmp_path / 'narrow.py'}:model"
    with pytest.raises(SystemExit):
        compare(*options, "--model", model, "--overwrite", out=tmp_path / "out")
    assert "must lie in [0, 3), the classes of the model" in capsys.readouterr().err
    after = {path: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.is_file()}
    assert after == before


def test_results_are_not_overwritten_unasked(tmp_path, capsys, monkeypatch):
    options = (*SMALL, "--modes", "selected", "--rounds", "1", "--fractions", "0.2")
    assert compare(*options, out=tmp_path) == 0
    before = (tmp_path / "summary.json").read_bytes()
    with pytest.raises(SystemExit) as exit:
        compare(*options, out=tmp_path)
    assert exit.value.code == 2
    assert "holds results already" in capsys.readouterr().err
    assert (tmp_path / "summary.json").read_bytes() == before
    # Its own configuration, read before it is replaced, makes the same again.
    assert compare(str(tmp_path / "configuration.toml"), "--overwrite", out=tmp_path) == 0
    assert (tmp_path / "summary.json").read_bytes() == before
    assert compare("--resume", out=tmp_path) == 0
    with pytest.raises(SystemExit):
        compare("--resume", "--rounds", "2", out=tmp_path)
    assert "cannot be resumed: --rounds is 1 there and 2 here" in capsys.readouterr().err

    def plot(file, *arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("fedjax_sim.compare.report.figure", plot)
    with pytest.raises(SystemExit) as exit:
        compare("--resume", out=tmp_path)
    assert exit.value.code == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "compare.png was not written: No space left on device; 1 batch is saved, and" in error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--dataset", "mnits"], "unknown dataset 'mnits'; did you mean 'mnist'?"),
        (["--partition", "nat"], "partition must be one of .*'nat'"),
        (["--partition", "natural"], "natural needs a dataset with natural clients"),
        (["--dataset", "wind", "--partition", "shards"], "splits by label, and wind has none"),
        (["--alpha", "0.1", "--partition", "iid"], "--alpha belongs to --partition dirichlet"),
        (["--alpha", "-1"], "alpha must be .*positive; got -1"),
        (["--alpha", "0"], "alpha must be .*positive; got 0"),
        (
            ["--partition", "shards", "--shards-per-client", "0"],
            "error: --shards-per-client .*got 0",
        ),
        (["--fractions", "0.1", "0.101"], r"different sizes.*make \[5, 5\]"),
        (["--dataset", "wind", "--model", "2nn"], r"model \(of wind\) must be one of mlp"),
        (["--modes", "selected", "mean"], "error: --modes must be one of .*'mean'"),
        (["--modes", "selected", "selected"], "modes must be at least one, each once"),
        (["--execution", "pmap"], "execution must be .*'pmap'"),
        (["--execution", "packed:0"], "--execution must be .*packed:LANES; got 'packed:0'"),
        (["--execution", "packed:6"], "packed:6 .*the smallest has 5"),
        (["--cores", "0"], "cores must be .*got 0"),
        (
            ["--cores", "100000"],
            r"error: --cores must be at most the \d+ cores of this machine; got 100000",
        ),
        (["--fractions", "0"], r"must be in \(0, 1\]; got 0"),
        (["--fractions", "lots"], "invalid fraction value: 'lots'"),
        (["--clients", "0"], "error: --clients must be .*got 0"),
        (["--clients", "1438"], "at most the 1437 examples; got 1438"),
        (["--clients", "800", "--partition", "shards"], "1600 shards"),
        (["--epochs", "0"], "epochs must be .*got 0"),
        (["--batch-size", "0"], "--batch-size must be .*got 0"),
        (["--batch-size", "ten"], "must be a whole number or full; got 'ten'"),
        (["--client-lr", "0"], "--client-lr must be .*positive; got 0"),
        (["--server-lr", "nan"], "--server-lr must be finite"),
        (["--rounds", "0"], "rounds must be .*got 0"),
        (["--seeds", "0"], "seeds must be .*got 0"),
        (["--target", "2"], "target must be .*at most 1; got 2"),
        (
            ["--model", "rnn"],
            r"model \(of digits\) must be one of logistic, cifar_cnn, .*; got 'rnn'",
        ),
        (["--dataset", "synthetic", "--model", "cnn"], r"model \(of synthetic\) .*got 'cnn'"),
        (["--synthetic-beta", "1"], "--synthetic-beta belongs to --dataset synthetic"),
        (["--dataset", "synthetic", "--synthetic-alpha", "-1"], "--synthetic-alpha .*got -1"),
        (["--partition", "quantity", "--skew", "zipf"], "skew must be one of lognormal.*'zipf'"),
        (["--partition", "quantity", "--skew-parameter", "-1"], "--skew-parameter .*got -1"),
        (["--partition", "labels", "--classes-per-client", "11"], "at most the 10 classes"),
        (["--skew", "lognormal"], "--skew belongs to --partition quantity"),
        (["--round", "3"], "unrecognized arguments: --round"),
    ],
)
def test_bad_options_end_with_one_line_and_code_2(tmp_path, capsys, options, message):
    with pytest.raises(SystemExit) as exit:
        compare(*options, out=tmp_path / "out")
    assert exit.value.code == 2
    captured = capsys.readouterr()
    assert re.search(message, captured.err)
    assert len(captured.err.splitlines()) == 1
    assert not list(tmp_path.rglob("*.*"))


def test_an_out_that_cannot_be_written_is_said_before_training(tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SystemExit) as exit:
        compare(*SMALL, out=tmp_path / "file")
    assert exit.value.code == 2
    assert "cannot be written" in capsys.readouterr().err


def interrupted(sweep, label):
    """`sweep`, with a Ctrl-C after the first round of a group, as the progress calls it."""

    def run(*arguments, on_progress, **options):
        told = []

        def tell(now):
            on_progress(now)
            if label in now.says and not told:
                told.append(now)
                signal.raise_signal(signal.SIGINT)

        return sweep(*arguments, on_progress=tell, **options)

    return run


def test_ctrl_c_keeps_what_is_computed(tmp_path, capsys, monkeypatch):
    from fedjax_sim.compare import comparison

    sweep = comparison.sweep
    monkeypatch.setattr(comparison, "sweep", interrupted(sweep, "fraction=1"))
    options = (*SMALL, "--fractions", "0.5", "1", "--modes", "selected", "all_clients")
    assert compare(*options, out=tmp_path / "cut") == 130
    said = capsys.readouterr().out
    assert "Interrupted: what was computed until then is kept." in said
    summary = json.loads((tmp_path / "cut" / "summary.json").read_text())
    assert not summary["complete"]
    assert [(row["mode"], row["rounds"]) for row in summary["rows"]] == [
        ("selected", 4),
        ("all_clients", 4),
        ("selected", 1),
        ("all_clients", 1),
    ]
    assert "after 1 round" in said
    assert (tmp_path / "cut" / "compare.png").exists()
    with (tmp_path / "cut" / "history.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 4 * 4 + 4 * 1

    monkeypatch.setattr(comparison, "sweep", sweep)
    assert compare("--resume", out=tmp_path / "cut") == 0
    assert compare(*options, out=tmp_path / "whole") == 0
    for name in ("history.csv", "rounds.csv"):
        whole = (tmp_path / "whole" / name).read_bytes()
        assert (tmp_path / "cut" / name).read_bytes() == whole


def test_an_interrupt_before_the_first_round_says_so(tmp_path, capsys, monkeypatch):
    from fedjax_sim.compare import comparison

    def sweep(*arguments, **options):
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(comparison, "sweep", sweep)
    assert compare(*SMALL, out=tmp_path) == 130
    assert "Interrupted before the first rounds were computed." in capsys.readouterr().out
    assert not (tmp_path / "summary.json").exists()


@pytest.mark.parametrize("number", slow_after(1, [signal.SIGTERM, signal.SIGINT]))
def test_a_signal_at_any_time_ends_cleanly(tmp_path, number):
    """The real process: no crash in a running XLA call, and whole files."""
    command = tiny_compare(tmp_path, rounds=1_000_000, seeds=1)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    first = process.stdout.readline()
    assert any("of 1 runs" in line for line in process.stdout)  # training has begun
    time.sleep(1)
    process.send_signal(number)
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 130, said
    assert first.startswith("FedAvg on digits")
    assert "Interrupted: what was computed until then is kept." in said
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert not summary["complete"]
    assert 0 < summary["rows"][0]["rounds"] < 1_000_000
    assert {path.name for path in tmp_path.iterdir()} == FILES | RESUMED_BY


@pytest.mark.slow
def test_a_closed_pipe_loses_nothing(tmp_path):
    command = (
        f"{sys.executable} -m fedjax_sim.cli compare --rounds 2 --seeds 1 --clients 10 -C 0.2 "
        f"--modes selected --out {tmp_path} | head -1"
    )
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert "Traceback" not in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == FILES | RESUMED_BY


@pytest.mark.slow
def test_an_ascii_terminal_is_enough(tmp_path):
    command = tiny_compare(tmp_path, rounds=2, seeds=2)
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "COLUMNS": "40"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert " selected " in done.stdout


def test_a_run_that_diverges_says_so(tmp_path, capsys):
    options = ("--dataset", "wind", "--rounds", "3", "--seeds", "1", "-C", "0.3")
    assert compare(*options, "--modes", "selected", "--client-lr", "1000", out=tmp_path) == 0
    assert "DIVERGED" in capsys.readouterr().out
    text = (tmp_path / "summary.json").read_text()
    summary = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert summary["rows"][0]["diverged"] == 1
    assert summary["rows"][0]["score_mean"] is None
    assert (tmp_path / "compare.png").exists()


@pytest.mark.slow
def test_one_client(tmp_path, capsys):
    options = ("--clients", "1", "-C", "1", "--rounds", "2", "--seeds", "1", "--partition", "iid")
    assert compare(*options, out=tmp_path) == 0
    said = capsys.readouterr().out
    for mode in ("selected", "all_clients", "uniform", "unbiased"):
        assert f" {mode} " in said


def test_missing_extra_is_said_in_one_line(tmp_path):
    code = (
        "import sys; sys.modules['rich'] = None; from fedjax_sim.cli import main; "
        f"main(['compare', '--out', {str(tmp_path)!r}])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert "install the cli extra: fedjax-sim[cli]" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_import_brings_in_neither_flax_nor_matplotlib():
    code = (
        "import sys, fedjax_sim as fs; "
        "print([m for m in ('flax', 'matplotlib', 'rich', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_compiled_programs_are_kept(tmp_path):
    """In the cache of who runs it, and on as many cores as asked for."""
    command = [sys.executable, "-m", "fedjax_sim.cli", "compare", "--rounds", "2", "--seeds", "1"]
    command += ["-C", "0.1", "--modes", "selected", "--cores", "1", "--out", str(tmp_path / "out")]
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    del environment["JAX_COMPILATION_CACHE_DIR"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "cache" / "fedjax_sim" / "xla").iterdir())


def test_compiled_programs_of_before_are_used_where_they_lie(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "before"))
    monkeypatch.setattr(machine.platformdirs, "user_cache_path", lambda name: tmp_path / name)
    assert machine.programs() == tmp_path / "fedjax_sim" / "xla"
    (tmp_path / "before" / "fedjax_sim" / "xla").mkdir(parents=True)
    assert machine.programs() == tmp_path / "before" / "fedjax_sim" / "xla"
