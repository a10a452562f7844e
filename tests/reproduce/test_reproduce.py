import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_sim as fs
from fedjax_sim import cli, reproduce
from fedjax_sim.cli import show
from fedjax_sim.host.driver import Interrupt, Progress
from fedjax_sim.reproduce import cells as tables
from fedjax_sim.reproduce import fedprox, race, racing, record, sections, select, selection
from fedjax_sim.reproduce.cells import RATIO, TABLES, Cell, Table, held_back, rates
from fedjax_sim.reproduce.race_tables import held_back_tables, rows
from fedjax_sim.reproduce.racing import is_through
from fedjax_sim.reproduce.store import Store, best_run
from fedjax_sim.results import Results, Run
from fedjax_sim.results.targets import rounds_to_target
from fedjax_sim.settings import build as problem
from fedjax_sim.settings.resolve import resolve
from fedjax_sim.settings.setting import Setting

SETTING = Setting(
    model="logistic",
    clients=20,
    partition="iid",
    fraction=0.2,
    epochs=1,
    target=0.75,
    evaluate_every=2,
)
CELL = Cell(
    "tiny",
    "tiny-iid",
    SETTING,
    20,
    22,
    "client_lr",
    rates(0.1),
    says=(("C", "0.2"), ("E", "1"), ("B", "10"), ("clients", "IID")),
)


def silent(*told):
    pass


@pytest.fixture(scope="module")
def raced(tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("raced"))
    assert race(CELL, store, 2, None, Interrupt(), silent)
    return store


def test_a_race_finds_the_rounds_of_runs_made_one_by_one(raced):
    found = raced.load(CELL)
    setting = replace(SETTING, rounds=CELL.most).resolved()

    @jax.jit
    def run(rate, key):
        return problem.experiment(resolve({**setting.values(), "client_lr": rate})).run(key)[1]

    for one in found["runs"]:
        history = run(one["rate"], jax.random.key(one["seed"]))
        # Measured after rounds 2, 4, ...
        scores = np.asarray(history.evaluation["test_accuracy"])[1::2]
        at = np.arange(2, CELL.most + 1, 2)
        wanted = rounds_to_target(scores, 0.75, at)
        count = len(one["scores"])
        np.testing.assert_allclose(one["scores"], scores[:count], atol=1e-4)
        if one["reached"] is not None:
            assert one["reached"] == pytest.approx(wanted, abs=1e-3)
            assert one["done"] == at[np.flatnonzero(scores >= 0.75)[0]]


def test_the_best_rate_lies_inside_and_has_every_seed(raced):
    found = raced.load(CELL)
    tried = sorted({one["rate"] for one in found["runs"]})
    assert tried[0] < found["rate"] < tried[-1]
    ratios = np.diff(np.log(tried)) / math.log(RATIO)
    np.testing.assert_allclose(ratios, 1, rtol=1e-6)
    assert {one["seed"] for one in found["runs"] if one["rate"] == found["rate"]} == {0, 1}
    best = best_run(found["runs"])
    # Whoever came later gave up where it could not be the best.
    for one in found["runs"][1:]:
        if one["seed"] == 0 and one["reached"] is None:
            assert one["done"] <= CELL.most
            assert one["done"] >= math.floor(best["reached"])


def test_bytes_are_those_of_the_rounds(raced):
    found = raced.load(CELL)
    parameters = 64 * 10 + 10
    for one in found["runs"]:
        if one["reached"] is not None:
            assert one["bytes_up"] == pytest.approx(one["reached"] * 4 * 4 * parameters, rel=1e-6)
            assert one["bytes_down"] == one["bytes_up"]


def test_an_interrupted_race_goes_on_to_the_same_record(raced, tmp_path):
    store = Store(tmp_path)
    cuts = [1, 5]  # behind these chunks of rounds, the first one's among them
    told = 0
    while True:
        interrupt = Interrupt()

        def tell(*given, interrupt=interrupt):
            nonlocal told
            told += 1
            if told in cuts:
                interrupt.received = "SIGINT"

        through = race(CELL, store, 2, None, interrupt, tell)
        assert through == (interrupt.received is None)
        if through:
            break
    assert told > max(cuts)

    def facts(store):
        found = store.load(CELL)
        runs = [{k: v for k, v in one.items() if k != "seconds"} for one in found.pop("runs")]
        return found, runs

    assert facts(store) == facts(raced)
    assert not [*(tmp_path / "running").iterdir()]


def test_a_race_through_runs_nothing(raced):
    calls = []
    assert race(CELL, raced, 2, None, Interrupt(), lambda *told: calls.append(told))
    assert not calls
    assert is_through(CELL, raced, 2)
    assert not is_through(CELL, raced, 3)


@pytest.mark.parametrize(
    ("best", "tried"),
    [
        (0, [0, -1, 1]),
        (2, [0, -1, 1, 2, 3]),
        (-2, [0, -1, 1, -2, -3]),
        (9, [0, -1, 1, 2, 3, 4, 5]),  # seven, and no more
    ],
)
def test_the_grid_goes_on_while_the_best_is_at_its_end(best, tried, tmp_path, monkeypatch):
    ran = []

    def one(cell, runner, store, of, most, interrupt, tell):
        rate, seed = of["rate"], of["seed"]
        i = round(math.log(rate / 0.1) / math.log(RATIO))
        ran.append((i, seed, most))
        needs = 5 + 2 * abs(i - best)  # evaluated every other round
        found = {"rate": rate, "seed": seed, "done": min(needs, most), "best": 0.9 - needs / 100}
        return found | {"seconds": 1.0, "reached": float(needs) if needs <= most else None}

    monkeypatch.setattr(racing, "_finish_run", one)
    monkeypatch.setattr(racing, "compiled", lambda *given: None)
    store = Store(tmp_path)
    assert race(CELL, store, 1, None, Interrupt(), silent)
    assert [i for i, _, _ in ran] == tried
    limits = [most for _, _, most in ran]
    assert limits == sorted(limits, reverse=True)


@pytest.mark.parametrize(
    ("accuracy", "tried"),
    [
        # Of rates 0.1 * 10^(i/6): i -> the most accurate even one's neighbours last.
        ({0: 0.7}, [0, -2, 2, 1, -1]),
        ({2: 0.7}, [0, -2, 2, 4, 3, 1]),
        ({0: 0.7, 1: 0.72}, [0, -2, 2, 1, -1]),
        ({0: 0.7, 1: 0.76}, [0, -2, 2, 1, -1]),  # reached
        ({0: 0.76}, [0, -2, 2]),
    ],
)
def test_between_rates_where_none_reaches_the_target(accuracy, tried, tmp_path, monkeypatch):
    ran = []

    def one(cell, runner, store, of, most, interrupt, tell):
        i = round(math.log(of["rate"] / 0.1) / math.log(RATIO) * 2)
        ran.append((i, of["seed"]))
        best = accuracy.get(i, 0.5)
        found = {"rate": of["rate"], "seed": of["seed"], "done": most, "best": best}
        return found | {"seconds": 1.0, "reached": 20.0 if best > 0.75 else None}

    monkeypatch.setattr(racing, "_finish_run", one)
    monkeypatch.setattr(racing, "compiled", lambda *given: None)
    best = max(accuracy, key=accuracy.get)
    store = Store(tmp_path)
    assert race(CELL, store, 2, None, Interrupt(), silent)
    assert ran == [*((i, 0) for i in tried), (best, 1)]
    # A record from before there were half steps is not through, though it says so.
    if len(tried) == 5:
        record = store.load(CELL)
        record["runs"] = [one for one in record["runs"] if one["rate"] in CELL.rates]
        store.save(CELL, record | {"rate": CELL.rates[1], "seeds": 2})
        ran.clear()
        assert not is_through(CELL, store, 2)
        assert race(CELL, store, 2, None, Interrupt(), silent)
        assert [i for i, seed in ran if not seed] == [1, -1]
        assert is_through(CELL, store, 2)


def test_a_rate_is_chosen_on_examples_held_back(tmp_path):
    """Both curves are those of the runs made one by one; the test set's rounds are reported."""
    cell = held_back(CELL, 0.25)
    assert cell.name == "tiny-iid-validation0.25"
    store = Store(tmp_path)
    assert race(cell, store, 2, None, Interrupt(), silent)
    assert is_through(cell, store, 2)
    assert not (store.cells / "tiny-iid.json").exists()
    runs = store.load(cell)["runs"]
    setting = replace(SETTING, validation=0.25, rounds=CELL.most).resolved()

    @jax.jit
    def curves(rate, key):
        run = problem.experiment(resolve({**setting.values(), "client_lr": rate})).run(key)
        return run[1].evaluation

    at = np.arange(2, CELL.most + 1, 2)
    for run in runs:
        scores = curves(run["rate"], jax.random.key(run["seed"]))
        reached = []
        for part, name in ((run, "test_accuracy"), (run["validation"], "validation_accuracy")):
            of_set = np.asarray(scores[name])[1::2]
            np.testing.assert_allclose(part["scores"], of_set[: run["done"] // 2], atol=1e-4)
            reached.append(rounds_to_target(of_set[: run["done"] // 2], 0.75, at))
        assert [run["reached"], run["validation"]["reached"]] == reached
    first = [run for run in runs if run["seed"] == 0 and run["validation"]["reached"] is not None]
    fastest = min(first, key=lambda run: run["validation"]["reached"])
    assert store.load(cell)["rate"] == fastest["rate"]
    assert fastest["reached"] is not None
    with pytest.raises(StopIteration):
        tables.named("tiny-iid")


def test_the_rate_chosen_by_validation_has_its_rounds_on_the_test_set(tmp_path, monkeypatch):
    """Its run ended with the rounds of the rate before it, and is run again to the end."""
    ran = []
    needs = {-1: (12, 14), 0: (10, 12), 1: (9, 21)}  # rounds on the validation and on the test set

    def one(cell, runner, store, of, most, interrupt, tell):
        i = round(math.log(of["rate"] / 0.1) / math.log(RATIO))
        ran.append((i, of["seed"], most))
        by_validation, by_test = (
            float(need) if need <= most else None for need in needs.get(i, (30, 30))
        )
        return {
            **{"rate": of["rate"], "seed": of["seed"], "done": min(most, max(needs.get(i, (30,))))},
            **{"best": 0.8, "seconds": 1.0, "reached": by_test},
            "validation": {"best": 0.8, "reached": by_validation},
        }

    monkeypatch.setattr(racing, "_finish_run", one)
    monkeypatch.setattr(racing, "compiled", lambda *given: None)
    cell, store = held_back(CELL, 0.1), Store(tmp_path)
    assert race(cell, store, 2, None, Interrupt(), silent)
    # The third is the best by validation and the fourth, beyond it, is not; then the third again.
    assert ran == [(0, 0, 22), (-1, 0, 10), (1, 0, 10), (2, 0, 10), (1, 0, 22), (1, 1, 22)]
    runs = store.load(cell)["runs"]
    assert [run["reached"] for run in runs if run["rate"] == store.load(cell)["rate"]] == [21, 21]
    assert is_through(cell, store, 2)


def test_what_json_cannot_hold_is_unknown(tmp_path, monkeypatch):
    """The pace of a run that was killed behind its last checkpoint."""
    monkeypatch.setattr(tables, "TABLES", {"tiny": Table("tiny", "Tiny", (CELL,))})
    monkeypatch.setattr(record, "TABLES", tables.TABLES)
    store = Store(tmp_path)
    run = {"rate": 0.1, "seed": 0, "reached": None, "done": 22, "best": math.nan}
    run |= {"seconds": math.nan, "made_by": {"jax": "1"}, "rounds": [22], "scores": [math.nan]}
    other = run | {"seed": 1, "best": 0.5, "seconds": 60.0}
    through = {"complete": True, "rate": 0.1, "seeds": 2, "long": False}
    store.save(CELL, {"runs": [run, other], **through})
    assert math.isnan(store.load(CELL)["runs"][0]["seconds"])
    record.write(tmp_path / "PAPERS.md", store)
    assert "| 0 of 2 | unknown | 0.5000 | unknown |" in (tmp_path / "PAPERS.md").read_text()


def test_off_a_terminal_a_race_tells_each_tenth_of_a_run(capsys):
    with show.cells_progress(2) as (tell, done):
        for round in range(1, 21):
            metrics = {} if round == 1 else {"test_accuracy": 0.5}
            tell(CELL, 0.1, 0, Progress(round, 20, 2.0, 80.0, 9.0, metrics))
        done(CELL)
        tell(CELL, 0.1, 1, Progress(1, 20, 2.0, 80.0, 9.0, {}))
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == [
        "0 of 2 cells, tiny-iid, rate 0.1, seed 0, round 1, 2 rounds/s",
        "0 of 2 cells, tiny-iid, rate 0.1, seed 0, round 2, 0.5000, 2 rounds/s",
    ]
    assert len(lines) == 1 + 10 + 1
    assert lines[-1].startswith("1 of 2 cells, tiny-iid, rate 0.1, seed 1")


def test_records_of_another_cell_are_refused(raced):
    other = CELL._replace(most=99)
    with pytest.raises(ValueError, match=r"another cell.*most is 22 there and 99 here"):
        raced.load(other)


def test_a_folder_is_one_processs(tmp_path):
    """Whoever is killed has lost it."""
    code = """
import sys, time
from pathlib import Path
from fedjax_sim.reproduce import Store
with Store(Path(sys.argv[1])).alone():
    print("in", flush=True)
    time.sleep(60)
"""
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "in\n"
        with (
            pytest.raises(ValueError, match=f"--out {tmp_path} is in use by another process"),
            Store(tmp_path).alone(),
        ):
            pass
        process.kill()
        process.wait()
        with Store(tmp_path).alone():
            pass


def test_a_broken_record_is_refused(tmp_path):
    store = Store(tmp_path)
    store.cells.mkdir()
    (store.cells / f"{CELL.name}.json").write_text("{")
    with pytest.raises(ValueError, match="cannot be read"):
        store.load(CELL)


def test_the_tables_hold_the_published_figures():
    published = [cell.published for cell in TABLES["table1-2nn"].cells]
    assert published == [
        316,
        87,
        77,
        75,
        70,
        1455,
        1474,
        1658,
        3275,
        664,
        619,
        443,
        380,
        4278,
        1796,
        1528,
    ]
    assert [cell.most for cell in TABLES["table1-2nn"].cells][:3] == [348, 96, 85]
    assert len(TABLES["table1-cnn"].cells) == 19
    second = {cell.says[1:]: cell.published for cell in TABLES["table2-cnn"].cells}
    assert second[("E", "20"), ("B", "10"), ("clients", "non-IID")] == 173
    names = [cell.name for table in TABLES.values() for cell in table.cells]
    assert len(set(names)) == len(names)
    for table in TABLES.values():
        for cell in table.cells:
            replace(cell.setting, rounds=cell.most, **{cell.axis: cell.rates[0]}).resolved()


def test_a_cell_brings_the_one_whose_rate_it_uses():
    found = select(["modes-iid-C0.1-E1-B10-all_clients"])
    assert [cell.name for cell in found] == [
        "modes-iid-C0.1-E1-B10-selected",
        "modes-iid-C0.1-E1-B10-all_clients",
    ]


def test_an_unknown_table_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match=r"got 'tabel1-2nn' .nearest: table1-2nn"):
        select(["tabel1-2nn"])


def test_the_page_says_what_the_records_say(tmp_path, monkeypatch):
    names = ("tiny-iid", "tiny-missed", "tiny-not-run", "tiny-begun", "tiny-there")
    cells = tuple(CELL._replace(name=name) for name in names)
    monkeypatch.setattr(tables, "TABLES", {"tiny": Table("tiny", "Tiny", cells)})
    monkeypatch.setattr(record, "TABLES", tables.TABLES)
    store = Store(tmp_path)

    def runs(*times):
        return [
            {"rate": 0.1, "seed": seed, "reached": time, "done": 20, "best": 0.8, "seconds": 60.0}
            | {"made_by": {"jax": "1"}, "rounds": [10, 20, 22], "scores": [0.7, 0.6, 0.8]}
            for seed, time in enumerate(times)
        ]

    through = {"complete": True, "rate": 0.1, "seeds": 2, "long": False}
    store.save(cells[0], {"runs": runs(9.0, 11.0), **through})
    store.save(cells[1], {"runs": runs(9.0, None), **through})
    store.save(cells[3], {"runs": runs(None), "complete": False})
    store.save(cells[4], {"runs": runs(9.0, None), "complete": False})
    store.save_estimates(dict.fromkeys(names, 2400.0))
    (tmp_path / "tiny.md").write_text("It was cut short.\n")
    names = record.write(tmp_path / "PAPERS.md", store)
    text = (tmp_path / "PAPERS.md").read_text()
    assert "| 0.2 | 1 | 10 | IID | 20 | 10 (9 to 11) | 0.50 | 11 | 0.1 (0.1 to 0.1, 1) |" in text
    assert "| 2 of 2 | 0.7000 (0.7000 to 0.7000) | 0.8000 | 2.0 |" in text
    assert "| > 22 (1 of 2 reached it) |  |" in text
    assert "| 1 of 2 | 0.7000 (0.7000 to 0.7000) |" in text
    assert "|\n\nIt was cut short.\n\nNot run" in text
    assert (
        "\n- C = 0.2, E = 1, B = 10, IID: 20 published, up to about 2.0 h"
        "; begun: of 1 so far the best, with client_lr 0.1, has an accuracy of 0.8000 after 20 "
        "rounds; begun: of 2 so far the best, with client_lr 0.1, reaches the target in 9 rounds\n"
    ) in text
    assert names[1].read_bytes().startswith(b"\x89PNG")


def test_the_accuracy_at_the_published_round_by_hand(tmp_path):
    """The best until round 20; a run that has ended by then counts with what it reached."""
    through = {"complete": True, "rate": 0.1, "seeds": 3, "long": False}
    curves = {
        0: ([10, 18, 22], [0.7, 0.6, 0.8]),
        1: ([10, 18], [0.7, 0.76]),
        2: ([10, 18, 22], [0.5, 0.65, 0.7]),
    }
    runs = [
        {"rate": 0.1, "seed": seed, "reached": None, "best": max(scores), "seconds": 1.0}
        | {"rounds": rounds, "scores": scores}
        for seed, (rounds, scores) in curves.items()
    ]
    runs[1]["reached"] = 18.0
    records = {CELL.name: {"runs": runs, **through}}
    assert "| 1 of 3 | >= 0.7033 (0.6500 to 0.7600) |" in rows(Table("t", "T", (CELL,)), records)[2]
    records = {CELL.name: {"runs": runs[1:2], **through}}
    assert "| 1 of 1 |  |" in rows(Table("t", "T", (CELL,)), records)[2]


def test_what_validation_changes_by_hand(tmp_path):
    cells = (CELL, CELL._replace(name="tiny-other"), CELL._replace(name="tiny-alone"))
    store = Store(tmp_path)

    def save(cell, rate, *times):
        runs = [
            {"rate": rate, "seed": seed, "reached": time, "best": 0.8, "seconds": 1.0}
            for seed, time in enumerate(times)
        ]
        store.save(cell, {"runs": runs, "complete": True, "rate": rate, "seeds": len(times)})

    for cell in cells:
        save(cell, 0.1, 10.0, 12.0)
    save(held_back(cells[0], 0.1), 0.1, 11.0, 22.0)
    save(held_back(cells[1], 0.1), 0.2, 11.0, None)
    (part,) = held_back_tables(Table("t", "T", cells), store)
    assert part[0].startswith("Rates chosen on 10 % of each client's examples")
    assert part[4:6] == [
        "| 0.2 | 1 | 10 | IID | 11 (10 to 12) | 0.1 | 16 (11 to 22) | 0.1 | 1.50 |",
        "| 0.2 | 1 | 10 | IID | 11 (10 to 12) | 0.1 | > 22 (1 of 2 reached it) | 0.2 |  |",
    ]
    assert part[-1].startswith(
        "The rate is the same in 1 of the 2 cells that were run both ways. By validation they are "
        "1.50 to 1.50 times the rounds."
    )


def test_a_cell_that_was_run_with_validation_alone_is_on_the_page(tmp_path):
    cell = tables.TABLES["table1-2nn"].cells[0]
    runs = [{"rate": 0.1, "seed": 0, "reached": 11.0, "best": 0.98, "seconds": 1.0, "made_by": {}}]
    store = Store(tmp_path)
    store.save(held_back(cell, 0.1), {"runs": runs, "complete": True, "rate": 0.1, "seeds": 1})
    record.write(tmp_path / record.PAGE, store)
    page = (tmp_path / record.PAGE).read_text()
    assert "|  |  | 11 | 0.1 |  |" in page
    assert "The rate is the same in 0 of the 0 cells that were run both ways." in page


def test_the_modes_finding_by_hand(tmp_path):
    """Rounds of selected, selected tuned, all_clients, all_clients tuned; bytes 10 or 1000 each."""
    cells = tables.TABLES["modes"].cells
    store = Store(tmp_path)
    given = ((40, 40, 320, 42), (100, 80, 500, 76), (100, None, 100, 100), (9, 9, 9, 9))
    for group, numbers in enumerate(given):
        for cell, reached in zip(cells[4 * group : 4 * group + 4], numbers, strict=True):
            each = 1000 if cell.setting.mode == "all_clients" else 10
            rate = 2.0 if reached == 80 else 1.0
            sent = None if reached is None else each * reached
            run = {"rate": rate, "seed": 0, "reached": reached, "bytes_down": sent}
            run |= {"bytes_up": sent, "made_by": {"jax": "1"}}
            # What was run at another client rate than `selected` does not stand beside it.
            client_lr = 0.5 if group == 3 and cell.after else 1.0
            # A seed that not all four have is no part of a ratio.
            more = [{**run, "seed": 1, "reached": 2}] if reached == 320 else []
            found = {"runs": [run, *more], "complete": True, "rate": rate, "client_lr": client_lr}
            store.save(cell, found | {"seeds": 1, "long": False})
    record.write(tmp_path / "PAPERS.md", store)
    text = (tmp_path / "PAPERS.md").read_text()
    assert text.count("not run |") == 3
    assert (
        "Combinations in which all four reach the target: 2. In them `all_clients` with server "
        "rate 1 takes 5 to 8 times the rounds of `selected` with 1, and sends 500 to 800 times as "
        "much down. With both tuned it takes 0.95 to 1.1 times the rounds and sends 95 to 105 "
        "times as much down. In 1 of 2 the best server rate of `selected` is 1; in the others the "
        "best one takes 0.8 times the rounds.\n"
    ) in text


def test_a_table_with_nothing_but_estimates_is_listed(tmp_path):
    store = Store(tmp_path)
    cells = tables.TABLES["table2-cnn"].cells
    store.save_estimates({cell.name: 3600.0 for cell in cells})
    assert record.write(tmp_path / "PAPERS.md", store) == [tmp_path / "PAPERS.md"]
    text = (tmp_path / "PAPERS.md").read_text()
    assert "\n- C = 0.1, E = 5, B = 10, IID: 20 published, up to about 60 min\n" in text
    assert text.count("\n- ") == len(cells) == 18
    assert "no estimate" not in text


def stragglers_curves():
    """Of two seeds."""
    loss = np.array([4.0] + [1.0] * 28 + [0.5])  # their mean is 1.0833
    accuracy = np.where(np.arange(30) < fedprox.EARLY, 0.25, 0.75)
    return tuple(
        Run(
            {"federation": federation, "stragglers_share": share, "method": method},
            seed,
            {"all_loss": loss * (1 + share), "test_accuracy": accuracy + seed / 10},
            {},
            30,
        )
        for federation in fedprox.FEDERATIONS
        for share in fedprox.STRAGGLERS
        for method in fedprox.METHODS
        for seed in (0, 1)
    )


def test_the_stragglers_table_by_hand():
    heading, _, *lines = fedprox.rows(Results(stragglers_curves()))
    assert heading == ("| stragglers | federation | FedAvg | FedProx, mu = 0 | FedProx, mu = 1 |")
    assert len(lines) == 12
    cell = "1.625, 0.750; 30.0%, 80.0% ± 7.1%"
    assert lines[4] == f"| 50% | IID | {cell} | {cell} | {cell} |"


def test_stragglers_are_dropped_or_kept_as_the_paper_has_them():
    data = fs.FederatedData.from_clients([{"x": np.ones(3)}] * 30)
    keys = jax.random.split(jax.random.key(0), 200)
    for share, slow in ((0.0, 0), (0.5, 5), (0.9, 9)):
        both = []
        for keep in (True, False):
            sample = fedprox.stragglers(share, keep).sample
            both.append(jax.vmap(sample, (0, None, None))(keys, 0, data))
        kept, dropped = both
        np.testing.assert_array_equal(kept.client_ids, dropped.client_ids)
        np.testing.assert_array_equal(jnp.sum(kept.work < 1, axis=1), slow)
        np.testing.assert_array_equal(kept.work < 1, ~dropped.reports)
        epochs = np.round(np.asarray(kept.work) * 20)
        if slow:
            assert set(np.unique(epochs[epochs < 20])) == set(range(1, 20))


def test_the_command_lists_refuses_and_runs(tmp_path, monkeypatch, capsys):
    assert cli.main(["reproduce"]) == 0
    assert "table1-2nn-iid-C0.1-E1-B10, 87 rounds published" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli.main(["reproduce", "table9"])
    assert "TABLE must be one of table1-2nn" in capsys.readouterr().err
    for arguments, message in (
        (["table1-2nn", "--validation", "1"], "--validation must be finite and in (0, 1); got 1.0"),
        (["fedprox", "--validation", "0.1"], "--validation chooses rates, which only the cells of"),
        (["claims", "table1-2nn", "--validation", "0.1"], "have; got claims-"),
    ):
        with pytest.raises(SystemExit):
            cli.main(["reproduce", *arguments])
        assert message in capsys.readouterr().err
    only = {"tiny": Table("tiny", "Tiny", (CELL._replace(rates=(0.1,), tuned=False),))}
    monkeypatch.setattr(tables, "TABLES", only)
    monkeypatch.setattr(record, "TABLES", only)
    monkeypatch.setattr(reproduce, "TABLES", only)
    for module in (selection, sections):
        monkeypatch.setattr(module, "ACCURACIES", {})
    command = ["reproduce", "tiny", "--seeds", "1", "--cores", "1", "--out", str(tmp_path)]
    assert cli.main([*command, "--estimate"]) == 0
    assert "1 of 1 cells to run: up to about" in capsys.readouterr().out
    assert not (tmp_path / "cells").exists()
    assert cli.main(["reproduce", "--estimate", *command[2:]]) == 0  # of all tables
    said = capsys.readouterr().out
    assert "1 of 1 cells to run: up to about" in said
    assert "fedprox: no estimate" in said
    broken = tmp_path / "file"
    broken.write_text("mine")
    for option, given in (("--out", broken), ("--record", tmp_path / "file" / "page.md")):
        with pytest.raises(SystemExit):
            cli.main([*command, option, str(given)])
        assert f"{option}: {given}" in capsys.readouterr().err.replace("/PAPERS.md", "")
    with pytest.raises(SystemExit):
        cli.main([*command, "--record", str(broken)])
    assert f"--record: {broken} is a file that this command" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main([*command, "--record", str(tmp_path / "page.pdf")])
    assert "--record must end in .md, for the page is Markdown" in capsys.readouterr().err
    assert cli.main(command) == 0
    said = capsys.readouterr().out
    assert "tiny-iid: " in said
    assert "(20 published), client_lr 0.1" in said
    found = json.loads((tmp_path / "cells" / "tiny-iid.json").read_text())
    assert found["complete"]
    assert (tmp_path / "PAPERS.md").exists()
    assert (tmp_path / "tiny.png").exists()
    assert cli.main([*command, "--estimate"]) == 0
    assert "0 of 1 cells to run: all are there." in capsys.readouterr().out


def test_committed_curves_are_not_run_again(tmp_path, monkeypatch, capsys):
    """A clone has their results without what a sweep resumes by."""
    (tmp_path / "fedprox").mkdir()
    Results(stragglers_curves()).save(tmp_path / "fedprox", {"kind": "sweep"})
    before = (tmp_path / "fedprox" / "rounds.csv").read_bytes()
    monkeypatch.setattr(fedprox, "run", None)
    monkeypatch.setattr(reproduce.shakespeare, "run", None)
    monkeypatch.setattr(reproduce.shakespeare, "is_through", lambda out: True)
    command = ["reproduce", "fedprox", "shakespeare", "--cores", "1", "--out", str(tmp_path)]
    assert cli.main([*command, "--seeds", "2"]) == 0
    assert "fedprox: all there." in capsys.readouterr().out
    assert "FedProx" in (tmp_path / "PAPERS.md").read_text()
    assert (tmp_path / "fedprox" / "rounds.csv").read_bytes() == before
    with pytest.raises(SystemExit):
        cli.main([*command, "--seeds", "3"])
    assert (
        "holds curves of 2 seeds, and is not given more; got --seeds 3" in capsys.readouterr().err
    )


def test_a_signal_between_the_cells_and_the_curves_ends_it(tmp_path, monkeypatch, capsys):
    only = {"tiny": Table("tiny", "Tiny", (CELL._replace(rates=(0.1,), tuned=False),))}
    for place in (tables, record, reproduce):
        monkeypatch.setattr(place, "TABLES", only)

    def race(*given):
        os.kill(os.getpid(), signal.SIGINT)
        return True

    monkeypatch.setattr(reproduce, "race", race)
    monkeypatch.setattr(fedprox, "run", None)
    command = ["reproduce", "tiny", "fedprox", "--cores", "1", "--out", str(tmp_path)]
    assert cli.main(command) == 130
    assert "Interrupted" in capsys.readouterr().out
