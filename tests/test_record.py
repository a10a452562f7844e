"""The records in the tree are what their programs write of the numbers beside them."""

import json
from pathlib import Path

import pytest

from benchmarks import asynchronous, report, robustness
from fedjax_sim.core.files import fingerprint, stamp_of
from fedjax_sim.reproduce import record
from fedjax_sim.reproduce.store import Store

HERE = Path(__file__).parent.parent / "benchmarks" / "records"


@pytest.fixture(scope="module")
def results():
    return json.loads((HERE / "results.json").read_text())


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """The papers' record, written anew of what is in the tree."""
    page = tmp_path_factory.mktemp("record") / record.PAGE
    return record.write(page, Store(HERE / "papers"))


def test_the_papers_page_is_of_their_numbers(pictures):
    assert pictures[0].read_text() == (HERE / record.PAGE).read_text()


def test_the_papers_pictures_are_of_their_numbers(pictures):
    names = ("table1-2nn", "table1-cnn", "table2-cnn", "modes", "fedprox", "shakespeare")
    assert [path.stem for path in pictures[1:]] == [*names]
    for path in pictures[1:]:
        assert stamp_of(HERE / path.name) == stamp_of(path) is not None, path.name


def test_the_benchmarks_page_and_picture_are_of_their_numbers(results):
    assert report.markdown(results) == (HERE / "RESULTS.md").read_text()
    assert stamp_of(HERE / "results.png") == fingerprint(report.plotted(results))


def test_a_picture_of_other_numbers_has_another_stamp(results, tmp_path):
    job = {"lr-mnist": results["lr-mnist"]}
    report.plot(job, tmp_path / "a.png")
    job["lr-mnist"] = {**job["lr-mnist"], "floor_us": 1.0}
    report.plot(job, tmp_path / "b.png")
    stamps = {stamp_of(tmp_path / name) for name in ("a.png", "b.png")}
    assert len(stamps) == 2
    assert None not in stamps


def test_a_peer_without_a_point_is_accounted_for(results):
    for job, shown in report.plotted(results).items():
        said = report.missing(job, results[job], shown)
        for name in report.NAMES:
            assert (name in shown) != (name in said)
    entries = [{"implementation": "pfl", "setting": 1, "error": "out of memory\nat line 3"}]
    said = report.missing("2nn", {"entries": entries}, {"floor": 1.0, "ours": 2.0})
    assert said == "pfl: out of memory"


def test_the_table_of_attacks_and_its_picture_are_of_their_numbers():
    record = json.loads((HERE / "robustness.json").read_text())
    assert robustness.page(record) == (HERE / "ROBUSTNESS.md").read_text(encoding="utf-8")
    assert stamp_of(HERE / "robustness.png") == fingerprint(record["scores"])
    # 4 attacks and the honest run of each of 5 rules, 3 shares, 3 seeds; a program for each rule.
    assert (record["num_runs"], record["compilations"]) == (5 * (4 * 3 + 1) * 3, 5)
    docs = (HERE.parent.parent / "docs" / "robustness.md").read_text(encoding="utf-8")
    assert "\n".join(robustness.table(robustness.scores_of(record), 0.3)) in docs


def test_the_worst_of_a_rule_is_of_the_attacks_alone():
    scores = {
        (rule, attack, share): [0.1 * column, 0.1 * column + 0.02 * (1 + row)]
        for column, rule in enumerate(robustness.RULES)
        for row, attack in enumerate(robustness.ATTACKS)
        for share in (0.0, 0.1)
    }
    assert robustness.worst(scores, 0.1)["median"] == (pytest.approx(0.12), "sign flip")
    assert "| none | 1.0 ± 1.4 | 11.0 ± 1.4 |" in robustness.table(scores, 0.1)[2]
    words = robustness.best_and_worst(scores, 0.1)
    assert "best rule is the geometric median (42.0 %, sign flip), the worst the mean (2" in words


def test_the_table_of_simulated_time_and_its_picture_are_of_their_numbers():
    record = json.loads((HERE / "asynchronous.json").read_text())
    assert asynchronous.page(record) == (HERE / "ASYNCHRONOUS.md").read_text(encoding="utf-8")
    assert stamp_of(HERE / "asynchronous.png") == fingerprint(record["rows"])
    best = asynchronous.best_of_each(record["rows"])
    assert [*best] == [*asynchronous.METHODS]
    for name, row in best.items():
        assert [asynchronous.seconds_to_target(x) for x in row["curves"]] == row["seconds"]
        others = [x for x in record["rows"] if x["method"] == name]
        assert len(others) == 9
        assert asynchronous.mean_time(row) == min(map(asynchronous.mean_time, others))
    docs = (HERE.parent.parent / "docs" / "asynchronous.md").read_text(encoding="utf-8")
    assert "\n".join(asynchronous.table(record["rows"])) in docs
