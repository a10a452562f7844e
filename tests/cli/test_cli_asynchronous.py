"""`fedjax-sim run --asynchronous`: its columns, and a resume."""

import pytest

from fedjax_sim.cli import main

WORDS = ["run", "--clients", "6", "--model", "logistic", "--asynchronous", "fedbuff"]
WORDS += ["--buffer", "2", "--concurrency", "4", "--clock", "lognormal"]


@pytest.mark.slow
def test_a_resumed_run_has_the_bits_and_the_columns_of_one(tmp_path, capsys):
    assert main([*WORDS, "--rounds", "6", "--out", str(tmp_path / "whole")]) == 0
    assert "c=4 in training at a time, 6 rounds" in capsys.readouterr().out
    assert main([*WORDS, "--rounds", "3", "--out", str(tmp_path / "parts")]) == 0
    assert main(["run", "--resume", "--rounds", "6", "--out", str(tmp_path / "parts")]) == 0
    whole = (tmp_path / "whole" / "rounds.csv").read_text()
    assert (tmp_path / "parts" / "rounds.csv").read_text() == whole
    assert {"seconds", "staleness_mean", "staleness_max"} <= {*whole.splitlines()[0].split(",")}
