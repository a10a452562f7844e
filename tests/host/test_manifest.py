"""What identifies what is in a results folder, without anything being run."""

import json

import pytest

from fedjax_sim.host.manifest import Manifest
from fedjax_sim.results.folder import RUN, SWEEP, RunFolder

FACTS = {
    "key": [0, 1],
    "num_rounds": 4,
    "evaluate_every": 2,
    "configuration": {"lr": 0.1},
    "program": {"parts": {"sampler": "a"}, "names": {"sampler": "uniform"}},
}


def test_what_is_read_is_what_was_written(tmp_path):
    folder = RunFolder(tmp_path / "run")
    assert Manifest.read(folder, RUN) is None
    manifest = Manifest.of(RUN, FACTS | {"tuple": (1, 2), "nan": float("nan")})
    manifest.open(folder, resume=False)
    assert Manifest.read(folder, RUN) == manifest
    assert manifest.facts["tuple"] == [1, 2]
    assert manifest.facts["nan"] is None
    assert (folder.holds(RUN), folder.holds(SWEEP), folder.has_parts(RUN)) == (True, False, False)
    with pytest.raises(ValueError, match=r"holds an experiment already; resume it, or name"):
        manifest.open(folder, resume=False)
    manifest.open(folder, resume=True)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"key": [0, 2]}, r"key is \[0, 1\] there and \[0, 2\] here"),
        ({"configuration": {"lr": 0.2}}, "configuration.lr is 0.1 there and 0.2 here"),
        (
            {"program": {"parts": {"sampler": "b"}, "names": {"sampler": "everyone"}}},
            "sampler is uniform there and everyone here",
        ),
        ({"num_rounds": 6, "key": [0, 2]}, "num_rounds is 4 there and 6 here; key .*More rounds"),
    ],
)
def test_another_run_is_refused_and_left_as_it_is(tmp_path, change, words):
    folder = RunFolder(tmp_path)
    Manifest.of(RUN, FACTS).open(folder, resume=False)
    before = folder.manifest(RUN).read_bytes()
    with pytest.raises(ValueError, match=f"holds another experiment and cannot be .*{words}"):
        Manifest.of(RUN, FACTS | change).open(folder, resume=True)
    assert folder.manifest(RUN).read_bytes() == before


def test_more_rounds_are_kept_and_fewer_than_done_refused(tmp_path):
    folder = RunFolder(tmp_path)
    Manifest.of(RUN, FACTS).open(folder, resume=False)
    for name in ("000000002", "000000004", "000000006.orbax-checkpoint-tmp-1", "mine"):
        (folder.parts(RUN) / name).mkdir(parents=True)
    assert folder.numbers(RUN) == [2, 4]  # neither what was cut off nor what is the user's
    with pytest.raises(ValueError, match=r"at least the 4 that are done in out .*; got 2"):
        Manifest.of(RUN, FACTS | {"num_rounds": 2}).open(folder, resume=True)
    Manifest.of(RUN, FACTS | {"num_rounds": 6}).open(folder, resume=True)
    assert json.loads(folder.manifest(RUN).read_text())["num_rounds"] == 6


def test_parts_of_nobody_knows_what_are_refused(tmp_path):
    folder = RunFolder(tmp_path)
    folder.parts(SWEEP).mkdir()
    (folder.parts(SWEEP) / "mine.npz").touch()
    facts = {"groups": [], "side_by_side": []}
    Manifest.of(SWEEP, facts).open(folder, resume=False)
    folder.manifest(SWEEP).unlink()
    folder.batch(3).touch()
    assert folder.numbers(SWEEP) == [3]
    with pytest.raises(ValueError, match=r"holds batches and no sweep.json that says of what"):
        Manifest.of(SWEEP, facts).open(folder, resume=False)
