"""`fedjax-sim run --privacy`, as a user meets it."""

import csv
import json
import sys

import pytest

from fedjax_sim.cli import main

OPTIONS = ("-K", "10", "-C", "0.5", "-E", "1", "--privacy", "central", "--clip", "0.5")


def run(*options, out):
    return main(["run", *map(str, options), "--out", str(out)])


def spent(folder):
    with (folder / "rounds.csv").open() as file:
        return [row["epsilon"] for row in csv.DictReader(file)]


def test_what_was_spent_is_a_column_and_a_line(tmp_path, capsys):
    options = (*OPTIONS, "--noise-multiplier", 4, "--delta", "1e-3")
    assert run(*options, "--rounds", 2, out=tmp_path) == 0
    first, second = spent(tmp_path)
    assert 0 < float(first) < float(second)
    line = f"Private: epsilon {float(second):.3f} at delta 0.001, noise multiplier 4."
    assert line in capsys.readouterr().out
    assert run("--resume", "--rounds", 4, "--evaluate-every", 1, out=tmp_path) == 0
    assert spent(tmp_path)[:2] == [first, second]
    assert float(spent(tmp_path)[3]) > float(second)
    configuration = json.loads((tmp_path / "summary.json").read_text())["configuration"]
    assert configuration["delta"] == 1e-3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("--sampler", "uniform", "--noise-multiplier", 1),
            "--sampler must draw each client on its own with one probability for a budget, as "
            "bernoulli or everyone, because",
        ),
        (
            ("--mode", "selected", "--noise-multiplier", 1),
            "--mode must have a fixed denominator, as unbiased or all_clients, for a private",
        ),
        (("--algorithm", "scaffold", "--noise-multiplier", 1), "sends a total beside it"),
        ((), "--noise-multiplier must be given to central, or epsilon in its place"),
    ],
)
def test_what_makes_no_claim_is_one_line_and_code_2(tmp_path, capsys, options, message):
    with pytest.raises(SystemExit) as exit:
        run(*OPTIONS, *options, out=tmp_path / "out")
    assert exit.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_without_the_accountant_it_is_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(SystemExit) as exit:
        run(*OPTIONS, "--noise-multiplier", 1, out=tmp_path / "out")
    assert exit.value.code == 2
    assert "pip install fedjax-sim[dp]" in capsys.readouterr().err
