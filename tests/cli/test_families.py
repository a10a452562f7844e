"""Algorithms that settings know only by what their files declare, from the command line."""

import csv
import re

import numpy as np
import pytest

from fedjax_sim.cli import main

# Full batches: every client takes as many steps, whatever it has.
SMALL = ("-K", "10", "--rounds", "3", "-E", "2", "-B", "full", "-C", "0.3", "--client-lr", "0.1")


def rows(command, *options, out, table="rounds.csv"):
    assert main([command, *map(str, options), *SMALL, "--out", str(out)]) == 0
    with (out / table).open() as file:
        return list(csv.DictReader(file))


def losses(table):
    return [float(row["test_loss"]) for row in table]


@pytest.mark.slow
def test_fednova_of_equal_steps_is_fedavg_with_momentum(tmp_path):
    nova = rows("run", "--algorithm", "fednova", "--momentum", 0.9, out=tmp_path / "nova")
    options = ("--algorithm", "fedavg", "--client-momentum", 0.9)
    fedavg = rows("run", *options, out=tmp_path / "fedavg")
    np.testing.assert_allclose(losses(nova), losses(fedavg), rtol=1e-5)
    assert 'algorithm = "fednova"' in (tmp_path / "nova" / "configuration.toml").read_text()
    assert "momentum = 0.9" in (tmp_path / "nova" / "configuration.toml").read_text()


@pytest.mark.slow
def test_a_sweep_of_q_begins_with_fedavg(tmp_path, capsys):
    options = ("--algorithm", "qfedavg", "--mode", "uniform", "--grid", "q=0,2", "--seeds", 1)
    swept = losses(rows("sweep", *options, out=tmp_path / "q", table="table.csv"))
    assert "traced: q" in capsys.readouterr().out
    plain = rows("run", "--algorithm", "fedavg", "--mode", "uniform", out=tmp_path / "fedavg")
    np.testing.assert_allclose(swept[0], losses(plain)[-1], rtol=1e-5)
    assert abs(swept[1] - swept[0]) > 1e-3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("fednova", "--momentum", 1), r"--momentum must be .*in \[0, 1\); got 1"),
        (("fednova", "--mu", 11), "--mu must be at most 1 / --client-lr = 10, .*got 11"),
        (("qfedavg", "--q", -1), "--q must be .*at least 0; got -1"),
        (("qfedavg", "--momentum", 0.5), "--momentum belongs to --algorithm .*fednova"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, capsys, options, message):
    with pytest.raises(SystemExit):
        rows("run", "--algorithm", *options, out=tmp_path)
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line)
