"""The page that compares results folders, and the folders read back."""

import json
import math
import os
import re
import shutil
import struct
import subprocess
import sys
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from fedjax_sim.plots import canvas, line_styles
from fedjax_sim.report import cards, page, reading, rendering, tables
from fedjax_sim.results import ROUNDS, SUMMARY, TABLE, Mean, Results, Run

EVIL = "<script>alert('&\"')</script>"
VOID = {"meta", "link", "br", "wbr", "img", "path", "use", "rect"}


def run(configuration, seed, *, rounds=6, top=0.9, num_rounds=None, values=None, every=1):
    """Rounds of a run that comes near `top`, seed by seed 0.01 higher."""
    t = np.arange(1, rounds + 1)
    score = top * (1 - 0.5**t) + 0.01 * seed
    found = {
        "train_loss": 1 / t,
        "receivers": np.full(rounds, 3),
        "update_norm": 0.5**t,
        "nonfinite": np.zeros(rounds, int),
        "evaluated": t % every == 0,
        "bytes_down": 1_000_000 * t,
        "bytes_up": 500_000 * t,
        "test_accuracy": score,
        "test_loss": 1 - score,
        "clients_accuracy_mean": score - 0.1,
        "clients_accuracy_p10": score - 0.2,
        "clients_accuracy_worst_tenth": score - 0.3,
    }
    return Run(configuration, seed, found, dict(values or {}), num_rounds or rounds)


def save(folder, runs, **summary):
    folder.mkdir()
    Results(tuple(runs)).save(folder, {"kind": "sweep", "score": "test_accuracy", **summary})
    return folder


def grid(rates, seeds=3, **how):
    return [
        run({"lr": lr}, s, top=0.9 - abs(lr - 0.1), **how) for lr in rates for s in range(seeds)
    ]


class Read(HTMLParser):
    """Tags in order, addresses, the table's cells and whether every tag is closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.addresses, self.tags, self.tables, self.ids = [], [], [], [], []
        self.words = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        found = dict(attrs)
        self.addresses += [x for k, x in found.items() if k.split(":")[-1] in ("href", "src")]
        self.ids += [found["id"]] if "id" in found else []
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.words += data
        if "td" in self.open or "th" in self.open:
            self.tables[-1][-1][-1] += data


def written(folders, out, **how):
    return Read(page.write(folders, out, **how).read_text(encoding="utf-8"))


def rows(read, head):
    """The table that has such a column, as dicts."""
    heads, *lines = next(table for table in read.tables if head in table[0])
    return [dict(zip(heads, line, strict=True)) for line in lines]


def test_the_table_has_the_means_over_seeds(tmp_path):
    runs = grid([0.01, 0.1], values={"rounds_to_target": 4.0})
    runs[1].values["rounds_to_target"] = None
    read = written([save(tmp_path / "a", runs)], tmp_path / "page.html")
    first, second = rows(read, "test_accuracy")
    assert (first["lr"], first["seeds"], first["rounds"]) == ("0.01", "3", "6")
    # Seeds 0, 1, 2 differ by 0.01: s = 0.01, t_{0.975, 2} = 4.302653.
    half = 4.302653 * 0.01 / math.sqrt(3)
    assert first["test_accuracy"] == f"{0.81 * (1 - 1 / 64) + 0.01:.3f} ± {half:.3f}"
    assert second["test_accuracy"] == f"{0.9 * (1 - 1 / 64) + 0.01:.3f} ± {half:.3f}"
    assert first["MB sent"] == second["MB sent"] == "9"  # 6 rounds of 1 and 0.5 MB
    assert first["rounds to target"] == "4 (2 of 3)"
    assert second["rounds to target"] == "4"
    assert (first[""], second[""]) == ("", "best")
    assert first["clients_accuracy_worst_tenth"].startswith("0.507")


def test_the_page_stands_alone(tmp_path):
    read = written([save(tmp_path / "a", grid([0.01, 0.03, 0.1, 0.3]))], tmp_path / "page.html")
    assert "data:," in read.addresses
    assert all(x.startswith(("data:", "#")) for x in read.addresses)
    assert not {"script", "iframe", "object", "img", "base", "form"} & set(read.tags)
    assert len(read.ids) == len(set(read.ids))
    assert {x[1:] for x in read.addresses if x.startswith("#")} <= set(read.ids)
    assert read.tags.count("figure") == 9
    assert read.tags.count("svg") == 9 + 4  # and a legend of four lines
    text = (tmp_path / "page.html").read_text()
    assert set(re.findall(r"url\((.*?)\)", text)) <= {f"#{x}" for x in read.ids}
    assert "http" not in re.sub(r'http-equiv="Content-Security-Policy"', "", text)


def test_figures_have_colours_for_dark_ground():
    """The page has them by CSS alone: a colour of the figures is a variable by its own name."""
    css = (Path(page.__file__).parent / "templates" / "style.css").read_text()
    dark = dict(re.findall(r"--c([0-9a-f]{6}):#([0-9a-f]{6})", css))
    figure, ax = canvas.figure()
    ax.plot([0, 1], [0, 1], color=canvas.INK)
    drawn = cards.inline(figure, "f1")
    assert f"stroke: var(--c{canvas.INK[1:]},{canvas.INK})" in drawn
    used = set(re.findall(r"var\(--c([0-9a-f]{6}),", drawn))
    styles = (*line_styles.STYLES, *line_styles.MODE_STYLES.values())
    used |= {canvas.LINE[1:], canvas.FAINT[1:], *(style["color"][1:] for style in styles)}
    assert used <= {*dark}
    assert all(there != here for there, here in dark.items())


def test_a_page_without_jinja2_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ImportError, match=r"a page needs jinja2: pip install fedjax-sim\[cli\]"):
        rendering.rendered("page.html")


def test_what_comes_from_files_is_escaped(tmp_path):
    runs = [
        run({"how": how, EVIL: 1.0}, s, values={EVIL + "v": 2.0})
        for how in (EVIL, "b")
        for s in (0, 1)
    ]
    folder = save(tmp_path / "a'><b>", runs, kind=EVIL, configuration={EVIL: EVIL, "x": {EVIL: 1}})
    summary = json.loads((folder / SUMMARY).read_text())
    summary["versions"][EVIL] = EVIL
    (folder / SUMMARY).write_text(json.dumps(summary))
    other = save(tmp_path / "c", runs, configuration={EVIL: "2"})
    read = written([folder, other], tmp_path / "page.html")
    assert "script" not in read.tags
    assert EVIL in read.words
    text = (tmp_path / "page.html").read_text()
    assert "<script" not in text
    assert "a'>" not in text
    assert {"how", EVIL} <= set(rows(read, "seeds")[0])


def test_text_that_looks_like_a_number_stays_text(tmp_path):
    labels = [("1e-3", "10"), ("007", 10), ("True", "full"), (None, 5)]
    runs = [run({"name": a, "size": b}, 0, values={"note": "3"}) for a, b in labels]
    found = reading.load(save(tmp_path / "a", runs)).results
    # A column of text and numbers, as batch_size, is read cell by cell.
    mixed = [10, 10, "full", 5]
    assert [one.configuration for one in found.runs] == [
        {"name": name, "size": size} for (name, _), size in zip(labels, mixed, strict=True)
    ]
    assert [one.values["note"] for one in found.runs] == ["3"] * 4


def test_a_folder_reads_back_as_it_was(tmp_path):
    runs = grid([0.01, 0.1], every=2) + [run({"lr": 5.0}, 0, values={"note": "x"})]
    runs[0].rounds["test_accuracy"][1] = math.nan
    folder = reading.load(save(tmp_path / "a", runs, configuration={"clients": 5}))
    assert folder.configuration == {"clients": 5}
    assert folder.kind == "sweep"
    for there, here in zip(runs, folder.results.runs, strict=True):
        assert (here.configuration, here.seed) == (there.configuration, there.seed)
        assert (here.num_rounds, here.done) == (there.num_rounds, there.done)
        assert here.diverged == there.diverged
        for name in there.rounds:
            np.testing.assert_array_equal(here.measured(name), there.measured(name))
    assert folder.results.runs[-1].values == {"note": "x"}


def test_runs_without_rounds_and_divergence_that_no_table_shows(tmp_path):
    runs = [Run({"n": n, "act": "relu"}, 0, {}, {"error": 1.0 / n}, 1) for n in (1, 2, 3)]
    runs.append(
        Run({"n": 4, "act": "relu"}, 0, {"grid": np.full((1, 2), np.nan)}, {"error": 0.0}, 1)
    )
    folder = reading.load(save(tmp_path / "a", runs))
    assert [r.configuration for r in folder.results.runs] == [r.configuration for r in runs]
    assert [r.diverged for r in folder.results.runs] == [False, False, False, True]
    read = written([tmp_path / "a"], tmp_path / "page.html")
    assert [row[""] for row in rows(read, "error")] == ["", "", "best", "diverged"]
    assert read.tags.count("svg") == 1


def test_an_interrupted_folder_is_said_to_be(tmp_path):
    runs = [run({"lr": 0.1}, 0), run({"lr": 0.1}, 1, rounds=2, every=3, num_rounds=6)]
    read = written([save(tmp_path / "a", runs, num_runs=4)], tmp_path / "page.html")
    assert "interrupted: 1 of 4 runs whole" in read.words
    (row,) = rows(read, "test_accuracy")
    assert (row["rounds"], row[""]) == ("2 to 6", "interrupted")
    assert row["test_accuracy"] == tables.NONE  # a seed was not evaluated yet
    assert "nan" not in read.words.lower()


def test_what_diverged_is_marked_and_never_best(tmp_path):
    runs = grid([0.1, 0.2], seeds=2)
    runs[0].rounds["test_accuracy"][-1] = math.nan
    runs[0].rounds["test_loss"][-1] = -math.inf
    read = written([save(tmp_path / "a", runs)], tmp_path / "page.html")
    first, second = rows(read, "test_accuracy")
    assert (first[""], second[""]) == ("diverged 1 of 2", "best")
    assert first["test_accuracy"] == first["test_loss"] == tables.NONE


def test_folders_are_compared(tmp_path):
    a = save(tmp_path / "a", grid([0.01, 0.1]), configuration={"algorithm": "fedavg", "clients": 9})
    b = save(
        tmp_path / "b",
        [run({}, 0)],
        kind="run",
        configuration={"algorithm": "fedprox", "clients": 9, "lr": 0.5},
    )
    read = written([a, b], tmp_path / "page.html")
    names = [row[""] for row in rows(read, "b")]
    assert names == ["algorithm", "lr", "seeds"]
    said = rows(read, "b")
    assert (said[1]["a"], said[1]["b"]) == ("0.01, 0.1", "0.5")
    assert (said[2]["a"], said[2]["b"]) == ("0, 1, 2", "0")
    table = rows(read, "test_accuracy")
    assert [(row["folder"], row["lr"]) for row in table] == [
        ("a", "0.01"),
        ("a", "0.1"),
        ("b", "0.5"),
    ]
    assert "made by different" not in read.words.lower()


def test_other_versions_are_refused_unless_mixed(tmp_path):
    folders = [save(tmp_path / name, grid([0.1])) for name in "ab"]
    summary = json.loads((folders[1] / SUMMARY).read_text())
    here = summary["versions"]["jaxlib"]
    summary["versions"]["jaxlib"] = "0.0.1"
    (folders[1] / SUMMARY).write_text(json.dumps(summary))
    out = tmp_path / "page.html"
    with pytest.raises(ValueError, match=f"jaxlib is {here} in a and 0.0.1 in b"):
        page.write(folders, out)
    assert not out.exists()
    assert f"jaxlib is {here} in a and 0.0.1 in b" in written(folders, out, mixed=True).words


def test_nothing_is_overwritten_unasked(tmp_path):
    folder, out = save(tmp_path / "a", grid([0.1])), tmp_path / "new" / "page.html"
    page.write([folder], out)
    page.write([folder], out)  # its own page can be made again
    out.write_text("mine")
    with pytest.raises(ValueError, match="is there already"):
        page.write([folder], out)
    assert out.read_text() == "mine"
    page.write([folder], out, overwrite=True)
    assert out.read_text().startswith("<!doctype html>")
    assert [path.name for path in out.parent.iterdir()] == ["page.html"]


@pytest.mark.parametrize(
    ("folders", "out", "says"),
    [
        ((), "p.html", "at least one"),
        (("a",), "p.pdf", "out must end in .html or .htm, .*p.pdf"),
        (("a",), "page", "out must end in .html"),
        (("a", "a"), "p.html", "must differ"),
        (("a",), "a", "is a folder"),
        (("a",), "a/table.csv/p.html", "cannot be written"),
    ],
)
def test_what_write_refuses(tmp_path, folders, out, says):
    save(tmp_path / "a", grid([0.1]))
    with pytest.raises(ValueError, match=says):
        page.write([tmp_path / name for name in folders], tmp_path / out)


def broken(name, change):
    def apply(folder):
        path = folder / name
        path.write_bytes(change(path.read_bytes()))

    return apply


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda folder: shutil.rmtree(folder), " is not there"),
        (lambda folder: (folder / ROUNDS).unlink(), "rounds.csv is missing"),
        (broken(SUMMARY, lambda x: x[:-9]), "summary.json is broken"),
        (broken(SUMMARY, lambda x: b"[]"), "no JSON object"),
        (broken(SUMMARY, lambda x: x.replace(b'"format": 1', b'"format": 2')), "format 1; got 2"),
        (broken(SUMMARY, lambda x: x.replace(b'"format": 1,', b"")), "format 1; got None"),
        (broken(TABLE, lambda x: b""), "table.csv is broken: it has no seed, rounds, complete"),
        (broken(TABLE, lambda x: x[: x.index(b"\n") + 1]), "it has no runs"),
        (broken(TABLE, lambda x: x.replace(b"\r\n", b",1\r\n", 2)), "do not belong|cells of"),
        (broken(TABLE, lambda x: b"\xff" + x), "table.csv is broken"),
        (broken(ROUNDS, lambda x: x[: x.rindex(b",")]), "rounds.csv is broken: line 13 has"),
        (broken(ROUNDS, lambda x: x[: x[:-2].rindex(b"\n") + 1]), "do not belong together"),
        (broken(ROUNDS, lambda x: x.replace(b"1.0", b"one")), "must be numbers"),
    ],
)
def test_what_load_refuses(tmp_path, change, says):
    folder = save(tmp_path / "a", grid([0.1], seeds=2))
    change(folder)
    with pytest.raises(ValueError, match=says):
        page.load(folder)


def test_folders_of_one_name_are_told_apart(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
    folders = [save(tmp_path / name / "results", grid([0.1])) for name in "ab"]
    read = written(folders, tmp_path / "page.html")
    assert {row["folder"] for row in rows(read, "folder")} == {"a/results", "b/results"}


def test_an_interval_is_written_to_its_second_digit():
    def said(mean, half):
        return tables.interval(Mean({}, mean, mean - half, mean + half, 2, 0))

    assert said(0.123456, 0.0123) == "0.123 ± 0.012"
    assert said(1234.5, 67.0) == "1234 ± 67"
    assert said(0.5, 0.0) == "0.5"
    assert said(0.5, math.nan) == "0.5"
    assert said(math.nan, math.nan) == tables.NONE
    assert said(1e9, 1e8) == "1e+09 ± 1e+08"


BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)

# Put into a copy of the page, which itself has no script.
MEASURE = """<script>addEventListener("load", () => {
const all = s => [...document.querySelectorAll(s)], box = x => x.getBoundingClientRect();
const top = box(all("figure")[0]).top;
parent.document.body.dataset.found = JSON.stringify({
 wide: innerWidth, page: document.documentElement.scrollWidth,
 row: all("figure").filter(x => Math.abs(box(x).top - top) < 2).length,
 card: box(all("figure")[0]).width,
 text: Math.min(...all("svg text").map(x => parseFloat(getComputedStyle(x).fontSize)
   * Math.hypot(x.getScreenCTM().a, x.getScreenCTM().b))),
 out: all("svg text").filter(x => box(x).right > box(x.closest("figure")).right + 1).length,
 boxes: all(".box").map(x => [x.scrollWidth, x.clientWidth])});
});</script>"""


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium on PATH")
@pytest.mark.parametrize(("width", "row"), [(1200, 3), (400, 1)])
def test_the_layout_in_a_browser(tmp_path, width, row):
    rates = np.geomspace(1e-3, 1, 64).tolist()
    a = save(tmp_path / "a", grid(rates), configuration={"clients": 100})
    b = save(tmp_path / "b", grid([0.01, 0.03, 0.1, 0.3]), configuration={"clients": 10})
    out = page.write([a, b], tmp_path / "page.html")
    text = out.read_text(encoding="utf-8")
    text = re.sub(r"<meta http-equiv=.*?>", "", text, flags=re.DOTALL)
    framed = escape(text.replace("</main>", f"</main>{MEASURE}"))
    (tmp_path / "measured.html").write_text(  # in a frame: a window may have a least width
        f'<!doctype html><body><iframe width={width} height=2000 style="border:0" '
        f'srcdoc="{framed}"></iframe></body>'
    )

    def browse(*options, of):
        command = [
            BROWSER,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--no-first-run",
            f"--user-data-dir={tmp_path / 'profile'}",
            f"--window-size={width},2000",
            *options,
            (tmp_path / of).as_uri(),
        ]
        done = subprocess.run(command, capture_output=True, timeout=120, env=os.environ)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode()

    dom = browse("--dump-dom", of="measured.html")
    found = json.loads(re.search(r'<body data-found="(.*?)"', dom).group(1).replace("&quot;", '"'))
    assert found["wide"] == width
    assert found["page"] <= width  # what is wider scrolls in a box of its own
    assert found["row"] == row
    assert 340 <= found["card"] <= 400
    assert found["text"] >= 9
    assert found["out"] == 0
    assert width > 400 or any(inside > outside for inside, outside in found["boxes"])

    browse(f"--screenshot={tmp_path / 'page.png'}", of="page.html")
    image = (tmp_path / "page.png").read_bytes()
    assert struct.unpack(">II", image[16:24]) == (width, 2000)
    assert len(image) > 50_000  # not blank


def test_what_differs_has_the_axes_values_and_the_rounds_that_were_run(tmp_path):
    stopped = [run({}, 0, rounds=4, num_rounds=4)]
    a = save(tmp_path / "a", stopped, configuration={"rounds": 200, "lr": 0.5, "mode": "selected"})
    b = save(
        tmp_path / "b",
        grid([0.01, 0.1]),
        configuration={"rounds": 6, "mode": "selected", "lrs": [0.01, 0.1]},
    )
    many = save(
        tmp_path / "c",
        grid(np.geomspace(1e-3, 1, 7).tolist(), seeds=1),
        configuration={"rounds": 6, "mode": "selected"},
    )
    differ = {row[""]: row for row in rows(written([a, b, many], tmp_path / "p.html"), "a")}
    assert [*differ] == ["rounds", "lr", "seeds"]  # and no list that repeats an axis
    assert (differ["rounds"]["a"], differ["rounds"]["b"]) == ("4 of 200", "6")
    assert (differ["lr"]["a"], differ["lr"]["b"]) == ("0.5", "0.01, 0.1")
    assert differ["lr"]["c"] == "7 from 0.001 to 1"
    assert (differ["seeds"]["b"], differ["seeds"]["c"]) == ("0, 1, 2", "0")


def test_names_stay_whole_a_title_says_a_word_once_and_no_column_is_empty(tmp_path):
    folder = save(
        tmp_path / "run", [run({}, 0)], kind="run", configuration={"client_momentum": 0.9}
    )
    read = written([folder], tmp_path / "page.html")
    assert "wbr" not in read.tags
    assert "<h2>run</h2>" in (tmp_path / "page.html").read_text()
    for table in read.tables:
        for column in zip(*table, strict=True):
            assert any(column[1:])
    named = save(tmp_path / "mine", [run({}, 0)], kind="run")
    page.write([named], tmp_path / "page.html")
    assert "<h2>mine <small>run</small></h2>" in (tmp_path / "page.html").read_text()


def test_figures_of_the_same_lines_have_one_legend(tmp_path):
    folder = save(tmp_path / "a", grid([0.01, 0.1], seeds=4))
    text = page.write([folder], tmp_path / "page.html").read_text()
    read = Read(text)
    assert read.tags.count("figure") > 3
    legend = text[text.index('<div class="card keys">') :]
    assert legend.index("</div>") < legend.index("<figure")  # above what it is of
    figures = re.findall(r"<figure.*?</figure>", text, re.S)
    assert not any("lr=0.01" in figure for figure in figures)
    assert "mean over 4 seeds; bands: 95% interval" in legend[: legend.index("</div>")]


def test_one_figure_keeps_its_legend(tmp_path):
    folder = save(tmp_path / "a", [run({}, 0)], kind="run")
    text = page.write([folder], tmp_path / "page.html").read_text()
    assert "keys" not in text[text.index("<main>") :]
    assert re.search(r"<figure(?:(?!</figure>).)*>\s*p10\s*<", text, re.S)


def test_the_shared_legends_names_are_as_they_are(tmp_path):
    runs = [run({"how": how}, seed) for how in ("$x$", "_y") for seed in (0, 1, 2, 3)]
    text = page.write([save(tmp_path / "a", runs)], tmp_path / "page.html").read_text()
    legend = text[text.index('<div class="card keys">') :]
    keys = re.findall(r"</svg>\s*([^<]*)</li>", legend[: legend.index("</ul>")])
    assert keys == ["$x$", "_y"]
