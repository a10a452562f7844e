"""A comparison of an algorithm whose clients have models of their own, from the command line."""

import csv
import json

import pytest

from fedjax_sim.cli import main

SMALL = ("--rounds", "3", "--seeds", "1", "-C", "0.3", "-K", "10", "--model", "logistic")


def compare(*options, out):
    return main(["compare", *SMALL, *options, "--out", str(out)])


def test_own_models_beside_the_global_one(tmp_path, capsys):
    options = ("--algorithm", "ditto", "--lam", "0.5", "--modes", "selected", "all_clients")
    assert compare(*options, out=tmp_path) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert text.startswith("ditto on digits")
    for words in ("own", "global", "worst tenth", "all_clients with server lr"):
        assert words in text
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["configuration"]["algorithm"] == "ditto"
    assert summary["configuration"]["lam"] == 0.5
    for row in summary["rows"]:
        for name in ("personal_mean", "personal_worst_tenth", "global_mean", "global_worst_tenth"):
            assert 0 <= row[name] <= 1
    with (tmp_path / "history.csv").open() as file:
        (*_, last) = csv.DictReader(file)
    row = next(row for row in summary["rows"] if row["mode"] == last["mode"])
    assert float(last["global_accuracy_mean"]) == pytest.approx(row["global_mean"], abs=1e-5)
    assert float(last["personal_accuracy_mean"]) == pytest.approx(row["personal_mean"], abs=1e-5)
    assert 'algorithm = "ditto"' in (tmp_path / "configuration.toml").read_text()
    assert (tmp_path / "compare.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_server_that_is_not_linear_has_no_identity(tmp_path, capsys):
    modes = ("--modes", "selected", "all_clients")
    assert compare("--algorithm", "fedadam", *modes, out=tmp_path) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "the server of fedadam is not linear in the averages" in text
    assert "all_clients with server lr" not in text


def test_an_algorithm_that_cannot_follow_a_mode_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        compare("--algorithm", "mifa", out=tmp_path)
    assert "must be a mean over the clients that report" in capsys.readouterr().err
