"""`fedjax-sim compare --compress`: a line for each codec, its bytes, its options, refusals."""

import csv
import json
import re
import tomllib

import pytest

from fedjax_sim.cli import main
from fedjax_sim.compare.comparison import Comparison
from fedjax_sim.settings.setting import Setting

SMALL = ("--rounds", "2", "--seeds", "1", "--clients", "10", "-C", "0.2")


def compare(*options, out):
    return main(["compare", "--out", str(out), "--modes", "selected", *options])


def test_codecs_side_by_side(tmp_path, capsys):
    codecs = ("--compress", "none", "top_k", "--share", "0.1", "--error-feedback")
    assert compare(*SMALL, *codecs, out=tmp_path) == 0
    assert "codec" in capsys.readouterr().out
    rows = json.loads((tmp_path / "summary.json").read_text())["rows"]
    assert [row["compress"] for row in rows] == ["none", "top_k"]
    # Of 640 + 10 parameters 64 and 1 travel, with their indices; two clients, two rounds.
    assert [row["megabytes_up"] * 1e6 for row in rows] == [4 * 650 * 4, 4 * 65 * 8]
    assert rows[0]["megabytes_down"] == rows[1]["megabytes_down"]
    # All ten would send theirs under the other reading.
    assert rows[1]["megabytes_up_all_send"] * 1e6 == 2 * 10 * 65 * 8
    with (tmp_path / "history.csv").open() as file:
        assert [line["compress"] for line in csv.DictReader(file)] == 2 * ["none"] + 2 * ["top_k"]
    saved = tomllib.loads((tmp_path / "configuration.toml").read_text())
    assert (saved["compress"], saved["share"]) == (["none", "top_k"], 0.1)
    assert (tmp_path / "compare.png").read_bytes().startswith(b"\x89PNG")
    assert compare("--resume", out=tmp_path) == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ("--share", "0.1"),
            "--share belongs to --compress top_k and .*; there is no compress",
        ),
        (
            ("--compress", "quantise", "--share", "0.1"),
            "random_k; the compress is quantise",
        ),
        (("--compress", "top_k"), "--share must be given to top_k"),
        (("--compress", "sign", "sign"), "--compress must be at least one, each once"),
        (("--compress", "top_j"), "--compress must be one of .* or none; got 'top_j'"),
        (("--compress", "quantise", "--bits", "17"), "bits.* 1..16; got .*17"),
        (
            ("--compress", "random_k", "--share", "0.1", "--error-feedback"),
            "would grow each time that it is sent",
        ),
    ],
)
def test_what_codecs_do_not_take_is_refused(options, words, tmp_path, capsys):
    with pytest.raises(SystemExit):
        compare(*SMALL, *options, out=tmp_path / "out")
    assert re.search(words, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_lines_are_named_by_what_differs():
    def label(modes, codecs):
        options = {"share": 0.1} if "top_k" in codecs else {}
        setting = Comparison(Setting(), modes=modes, compress=codecs, codec_options=options)
        resolved = setting.resolved()
        return resolved.label(modes[-1], codecs[-1])

    both = ("selected", "all_clients")
    assert label(both, ("none",)) == "all_clients"
    assert label(("selected",), ("none",)) == "selected"
    assert label(("selected",), ("none", "top_k")) == "top_k"
    assert label(both, ("none", "top_k")) == "all_clients, top_k"
