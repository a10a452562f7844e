"""Folders that an earlier version saved go on: those of `saved/`, made before the floor plan.

Made by `fedjax-sim run -K 10 -C 0.3 -E 1 --rounds 2` and `fedjax-sim sweep -K 10 -C 0.3 --rounds 2
--grid epochs=1,2 --grid client_lr=0.05,0.1` on two devices; what a resume does not read was left
out, and the sweep's second batch, to be computed again.
"""

import csv
import json
import shutil
from pathlib import Path

import numpy as np

from fedjax_sim.cli import main
from fedjax_sim.core.versions import versions

SAVED = Path(__file__).with_name("saved")
MANIFESTS = {"run": "experiment.json", "sweep": "sweep.json"}
RUN = ("-K", "10", "-C", "0.3", "-E", "1")
SWEEP = (
    "-K",
    "10",
    "-C",
    "0.3",
    "--rounds",
    "2",
    "--grid",
    "epochs=1,2",
    "--grid",
    "client_lr=0.05,0.1",
)


def rows(folder):
    with (folder / "rounds.csv").open(newline="") as file:
        return list(csv.reader(file))


def close(these, those):
    """Rows of rounds that differ by a machine's or a version's rounding at most."""
    assert these[0] == those[0]
    numbers = [
        [[float({"True": 1, "False": 0}.get(cell, cell)) for cell in row] for row in table[1:]]
        for table in (these, those)
    ]
    # An accuracy on 360 images moves by 1/360 where one image changes sides.
    np.testing.assert_allclose(*numbers, rtol=1e-4, atol=3e-3)


def copied(name, folder, of_today):
    """A copy of a saved folder, which resumes as it is under the versions that made it.

    Under others, the versions are put into its manifest and, because a program traced by another
    JAX has other checksums, these too. A first model's bits are those of the machine and of how
    its compiler is told to optimise, so they are put in anywhere.

    Args:
      of_today: () -> the manifest of the same run or sweep, made here.
    """
    shutil.copytree(SAVED / name, folder)
    manifest = read(folder, name)
    if manifest["versions"] != versions():
        manifest["versions"] = versions()
        for part, part_of_today in zip(parts(manifest), parts(of_today()), strict=True):
            part["program"] = part_of_today["program"]
    if "first_params" in manifest:
        manifest["first_params"] = of_today()["first_params"]
    (folder / MANIFESTS[name]).write_text(json.dumps(manifest))
    return folder


def read(folder, name):
    return json.loads((folder / MANIFESTS[name]).read_text())


def parts(manifest):
    """What a manifest has programs of: a sweep's groups, or a run."""
    return manifest.get("groups", [manifest])


def test_a_saved_run_goes_on_with_more_rounds(tmp_path):
    whole = tmp_path / "whole"
    assert main(["run", *RUN, "--rounds", "4", "--out", str(whole)]) == 0
    folder = copied("run", tmp_path / "run", lambda: read(whole, "run"))
    assert main(["run", "--resume", "--rounds", "4", "--out", str(folder)]) == 0
    assert rows(folder)[:3] == rows(SAVED / "run")  # the rounds that were done are as they were
    # To rounding: the model that was saved has the bits of another machine, and equal measures do
    # not say that its own are equal. The bits of a resumed run are for test_simulate to compare.
    close(rows(folder), rows(whole))
    assert read(folder, "run") == read(whole, "run")


def test_a_saved_sweep_computes_what_is_missing(tmp_path):
    def of_today():
        assert main(["sweep", *SWEEP, "--out", str(tmp_path / "today")]) == 0
        return read(tmp_path / "today", "sweep")

    folder = copied("sweep", tmp_path / "sweep", of_today)
    before = read(folder, "sweep")
    assert main(["sweep", "--resume", "--out", str(folder)]) == 0
    close(rows(folder), rows(SAVED / "sweep"))
    assert rows(folder)[:5] == rows(SAVED / "sweep")[:5]  # those of the batch that is there
    assert read(folder, "sweep") == before
