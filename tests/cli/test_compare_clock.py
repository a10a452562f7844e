"""`fedjax-sim compare --clock`: simulated time beside rounds and bytes."""

import csv
import json

import pytest

from fedjax_sim.cli import main

SMALL = ("--rounds", "3", "--seeds", "1", "--clients", "10", "-C", "0.2", "--modes", "selected")


def test_time_is_a_third_curve_and_a_column(tmp_path):
    clock = ("--clock", "equal", "--bandwidth", "1000")
    assert main(["compare", "--out", str(tmp_path), *SMALL, *clock]) == 0
    (row,) = json.loads((tmp_path / "summary.json").read_text())["rows"]
    with (tmp_path / "history.csv").open() as file:
        seconds = [float(line["seconds"]) for line in csv.DictReader(file)]
    # A model of 650 numbers of 4 bytes takes 2.6 s down and 2.6 s up, and training some more.
    assert seconds[0] > 5.2
    assert seconds == sorted(seconds)
    assert row["seconds"] == pytest.approx(seconds[-1], rel=1e-5)
    assert (tmp_path / "compare.png").read_bytes().startswith(b"\x89PNG")
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "page.html")]) == 0
    assert "by simulated time" in (tmp_path / "page.html").read_text()


def test_without_a_clock_there_is_none(tmp_path):
    assert main(["compare", "--out", str(tmp_path), *SMALL]) == 0
    (row,) = json.loads((tmp_path / "summary.json").read_text())["rows"]
    assert "seconds" not in row
    assert "seconds" not in (tmp_path / "history.csv").read_text()
