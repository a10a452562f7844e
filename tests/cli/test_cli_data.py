"""`fedjax-sim data`."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest

from fedjax_sim.cli import main
from fedjax_sim.settings import build, stores, user_data


def describe(*options):
    return main(["data", "describe", *map(str, options)])


def test_describe_says_and_draws_what_a_run_would_have(tmp_path, capsys):
    out = tmp_path / "split.png"
    assert describe("--clients", 10, "--partition", "iid", "--out", out) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "digits (iid; partition_seed=0): 10 clients, 1437 training examples"
    assert said[1] == (
        "examples of a client: 143 to 144, median 144, mean 143.7, coefficient of variation 0.00"
    )
    assert said[2].startswith("classes of a client: 10.0 of 10 on average")
    assert said[3] == f"Wrote {out}"
    assert out.read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["split.png"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--partition", "labels", "--classes-per-client", 3], "classes of a client: 3.0 of 10"),
        (["--partition", "shards"], "partition_seed=0): 50 clients"),
        (["--partition", "quantity", "--skew", "power_law", "--skew-parameter", 2], "iation 4."),
        (["--alpha", 0.05, "--min-examples", 0, "-K", 200], "min_examples=0, part"),
        (["--alpha", 10, "--min-examples", 20, "-K", 50], "min_examples=20, part"),
        (["--partition", "quantity", "--min-examples", 9, "-K", 150], "a client: 9 to"),
        (["--dataset", "wind"], "wind (natural; partition_seed=0): 10 clients"),
        (["--dataset", "synthetic", "--synthetic-alpha", 0, "-K", 5], "synthetic_alpha=0.0"),
        (["--dataset", "synthetic_iid"], "30 clients"),
    ],
)
def test_every_split_is_described(options, says, capsys):
    assert describe(*options) == 0
    said = capsys.readouterr().out
    assert says in said
    assert ("classes of a client" in said) == ("wind" not in options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "a.gif"], r"error: --out must be a file .png, .svg, .pdf; got a.gif"),
        (["--clients", "1438"], "at most the 1437 examples; got 1438"),
        (["--partition", "shards", "--clients", "1000"], "2000 shards"),
        (["--partition", "labels", "--clients", "1437"], "take fewer clients"),
        (["--alpha", "0"], "alpha must be .*positive; got 0"),
        (
            ["--alpha", "0.01", "--clients", "200"],
            "error: --min-examples = 1 was not met in 100 draws of",
        ),
        (
            ["--min-examples", "29", "--clients", "50"],
            "enough for 50 clients of the 1437 ex.*; got",
        ),
        (
            ["--min-examples", "-1"],
            "error: --min-examples must be a whole number, at least 0; got -1",
        ),
        (["--min-examples", "2.5"], "min-examples: must be a whole number; got 2.5"),
        (
            ["--partition", "shards", "--min-examples", "1"],
            "--min-examples belongs to --partition dir",
        ),
        (["--dataset", "wind", "--partition", "labels"], "splits by label, and wind has none"),
        (["--rounds", "3"], "unrecognized arguments"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(options, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit:
        describe(*options)
    assert exit.value.code == 2
    said = capsys.readouterr().err
    assert re.search(message, said)
    assert len(said.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_picture_is_not_overwritten_unasked(tmp_path, capsys):
    out = tmp_path / "split.svg"
    assert describe("--dataset", "wind", "--out", out) == 0
    before = out.read_bytes()
    with pytest.raises(SystemExit):
        describe("--out", out)
    said = capsys.readouterr().err
    assert f"error: --out {out} exists already; give --overwrite" in said
    assert out.read_bytes() == before
    assert describe("--out", out, "--overwrite") == 0
    assert out.read_bytes() != before


@pytest.mark.slow
def test_a_store_trains_as_the_data_that_it_was_written_of(tmp_path, capsys):
    """Clients in a folder, read while they train: the rounds of a run on the data themselves."""
    folder = tmp_path / "stored"
    assert main(["data", "store", "--data", "wind", "--out", str(folder)]) == 0
    assert "Wrote 10 clients" in capsys.readouterr().out
    assert {x.name for x in folder.iterdir()} == {"dataset.json", "test", "train"}
    options = ["--rounds", "2", "--model", "mlp", "-E", "1", "-C", "0.3", "--client-lr", "0.02"]
    rounds = []
    for name in ("wind", str(folder)):
        out = tmp_path / f"run-{len(rounds)}"
        assert main(["run", "--data", name, *options, "--out", str(out)]) == 0, name
        lines = (out / "rounds.csv").read_text().splitlines()
        rounds.append([[float(x or "nan") for x in line.split(",")[3:6]] for line in lines[1:]])
    np.testing.assert_allclose(*rounds, rtol=1e-3)
    with pytest.raises(SystemExit):
        main(["data", "store", "--data", "wind", "--out", str(folder)])
    assert "holds a data set already" in capsys.readouterr().err
    (folder / "test" / "manifest.json").unlink()
    for cached in (stores._opened, user_data._loaded, build._problem):
        cached.cache_clear()
    with pytest.raises(SystemExit):
        main(["run", "--data", str(folder), *options, "--out", str(tmp_path / "other")])
    assert "manifest.json cannot be read" in capsys.readouterr().err


@pytest.mark.slow
def test_a_store_is_dealt_over_cores_and_has_baselines(tmp_path):
    """In a process of its own, in which the command is the first that asks JAX for devices."""
    folder = tmp_path / "stored"
    assert main(["data", "store", "--data", "digits", "-K", "6", "--out", str(folder)]) == 0
    words = ["run", "--data", str(folder), "--rounds", "1", "-E", "1"]
    words += ["--cores", str(min(2, os.cpu_count() or 1)), "--baselines", "centralised"]
    words += ["--out", str(tmp_path / "run")]
    environment = {k: v for k, v in os.environ.items() if k != "JAX_NUM_CPU_DEVICES"}
    done = subprocess.run(
        [sys.executable, "-m", "fedjax_sim.cli", *words],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "centralised: test_accuracy" in done.stdout
    assert (tmp_path / "run" / "centralised" / "summary.json").exists()
