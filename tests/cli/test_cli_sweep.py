"""`fedjax-sim sweep`, as a user meets it."""

import csv
import json
import re
import signal
import tomllib

import numpy as np
import pytest

import fedjax_sim as fs
from fedjax_sim.cli import main
from fedjax_sim.cli.commands import sweep as command
from fedjax_sim.sweeps import shared_work

SMALL = ("-K", "10", "--rounds", "4", "-E", "1", "-C", "0.3")
FILES = {"summary.json", "table.csv", "rounds.csv", "configuration.toml"}
RESUMED_BY = {"sweep.json", "batches"}


def sweep(*options, out):
    return main(["sweep", *map(str, options), "--out", str(out)])


def refused(capsys, *options, out):
    """The one line that a mistake is answered with."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit:
        sweep(*options, out=out)
    assert exit.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def table(folder, name="table.csv"):
    with (folder / name).open() as file:
        return list(csv.DictReader(file))


def configuration(folder):
    return tomllib.loads((folder / "configuration.toml").read_text())


def test_a_sweep_writes_what_it_promises(tmp_path, capsys):
    options = ("--grid", "client_lr=0.001,1", "--grid", "epochs=1,2", "--seeds", 2)
    assert sweep("-K", 10, "--rounds", 4, *options, "--target", 0.3, out=tmp_path / "one") == 0
    said = capsys.readouterr()
    assert "4 configurations x 2 seeds = 8 runs of 4 rounds, in 2 groups" in said.out
    assert "traced: client_lr; static: epochs" in said.out
    assert "8 of 8 runs" in said.err
    assert {path.name for path in (tmp_path / "one").iterdir()} == FILES | RESUMED_BY
    rows = table(tmp_path / "one")
    assert [(row["client_lr"], row["epochs"], row["seed"]) for row in rows[:3]] == [
        ("0.001", "1", "0"),
        ("0.001", "1", "1"),
        ("0.001", "2", "0"),
    ]
    scores = {}
    for row in rows:
        scores.setdefault((row["client_lr"], row["epochs"]), []).append(float(row["test_accuracy"]))
    means = {place: sum(some) / 2 for place, some in scores.items()}
    best = max(means, key=means.get)
    (line,) = [line for line in said.out.splitlines() if line.startswith(" best")]
    lr, epochs = best
    assert re.search(rf"best +{float(lr):g} +{epochs} +{means[best]:.4f} +± ", line)
    assert "rounds to 0.3" in said.out
    assert "never" in said.out
    summary = json.loads((tmp_path / "one" / "summary.json").read_text())
    assert (summary["kind"], summary["score"]) == ("sweep", "test_accuracy")
    assert (summary["complete"], summary["seeds"]) == (True, [0, 1])

    assert sweep(tmp_path / "one" / "configuration.toml", out=tmp_path / "two") == 0
    for name in FILES:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.slow
def test_models_are_kept_when_asked(tmp_path, capsys):
    options = (*SMALL, "--model", "logistic", "--grid", "client_lr=0.05,2.0")
    assert sweep(*options, "--keep-models", "best", out=tmp_path) == 0
    assert f"models, configuration.toml to {tmp_path}" in capsys.readouterr().out
    assert configuration(tmp_path)["keep_models"] == "best"
    test = fs.datasets.digits().test
    for lr in (0.05, 2.0):
        lines = [x for x in table(tmp_path, "rounds.csv") if float(x["client_lr"]) == lr]
        scores = [float(line["test_accuracy"]) for line in lines]
        trained = fs.load(tmp_path, {"client_lr": lr})
        assert (trained.round, trained.metric) == (int(np.argmax(scores)) + 1, "test_accuracy")
        layer = trained.params["layers_1"]
        logits = test["x"].reshape(len(test["y"]), -1) @ layer["kernel"] + layer["bias"]
        accuracy = np.mean(np.argmax(logits, axis=1) == test["y"])
        assert accuracy == pytest.approx(max(scores), abs=1e-6)
        assert trained.configuration["model"] == "logistic"
    # It is part of what is resumed, and of what is replaced; what is not its own stays.
    (tmp_path / "models" / "mine.npz").write_bytes(b"")
    assert "--keep-models is" in refused(capsys, "--keep-models", "--resume", out=tmp_path)
    assert sweep("--resume", out=tmp_path) == 0
    assert sweep(*options, "--overwrite", out=tmp_path) == 0
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["mine.npz"]
    (tmp_path / "mine.toml").write_text("keep_models = true")
    said = refused(capsys, tmp_path / "mine.toml", out=tmp_path / "other")
    assert "keep_models must be final or best; got True" in said


def files_of(path):
    return {file.name: file.read_bytes() for file in path.iterdir() if file.is_file()}


def test_a_sweep_that_is_refused_removes_nothing(tmp_path, capsys):
    options = ("--rounds", "1", "--grid", "client_lr=0.05,0.1")
    assert sweep(*options, out=tmp_path) == 0
    before = files_of(tmp_path)
    refusing = ("--sampler", "power_of_choice", "--candidates", "1000")  # by its rounds
    assert "--candidates must be at most K" in refused(
        capsys, *options, *refusing, "--overwrite", out=tmp_path
    )
    twice = ("--zip", "client_lr=0.1,0.1", "epochs=1,1", "--overwrite")  # by its table
    assert "must have each configuration once" in refused(capsys, *twice, out=tmp_path)
    few = ("--random", "3", "client_lr=choice(0.1,1)", "--overwrite")
    assert "num must be at most 2, the combinations" in refused(capsys, *few, out=tmp_path)
    alone = ("--random", "3", "--overwrite")
    assert "random must have an axis behind its number" in refused(capsys, *alone, out=tmp_path)
    assert files_of(tmp_path) == before


POWER_OF_CHOICE = ("--sampler", "power_of_choice", "--candidates", "1000")


@pytest.mark.parametrize(
    ("command", "refusing", "message"),
    [
        ("run", POWER_OF_CHOICE, "--candidates must be at most K"),
        ("sweep", POWER_OF_CHOICE, "--candidates must be at most K"),
        ("compare", ("--algorithm", "mifa"), "--modes must be a mean over the clients that report"),
    ],
)
def test_what_is_refused_leaves_no_folder_in_the_way(tmp_path, capsys, command, refusing, message):
    """What only a round refuses, once the folder is there."""
    options = ("-K", "10", "-C", "0.3", "--rounds", "1", "--out", str(tmp_path))
    options += ("--seeds", "1") if command == "compare" else ()
    with pytest.raises(SystemExit):
        main([command, *options, *refusing])
    assert message in capsys.readouterr().err
    assert files_of(tmp_path) == {}
    assert main([command, *options]) == 0


@pytest.mark.slow
def test_a_configuration_is_a_run(tmp_path):
    assert sweep(*SMALL, "--grid", "client_lr=0.05,0.5", "--seed", 3, out=tmp_path / "many") == 0
    options = (*SMALL, "--client-lr", "0.5", "--seed", "3")
    assert main(["run", *options, "--out", str(tmp_path / "one")]) == 0
    (alone,) = table(tmp_path / "one")
    _, found = table(tmp_path / "many")
    assert float(found["test_accuracy"]) == pytest.approx(float(alone["test_accuracy"]), abs=0.01)
    assert float(found["train_loss"]) == pytest.approx(float(alone["train_loss"]), rel=1e-3)
    assert found["client_steps"] == alone["client_steps"]


@pytest.mark.slow
def test_an_option_is_of_the_configurations_that_take_it(tmp_path):
    """An honest run stands beside attacks, and a rule without an f beside one that has it."""
    axes = ("--grid", "attack=none,sign_flip", "--grid", "mode=selected,krum")
    options = ("--f", 2, "--malicious", 0.2, "--flip-scale", 3, "--model", "logistic")
    assert sweep(*SMALL[:-2], "-C", 1, *axes, *options, out=tmp_path / "one") == 0
    rows = table(tmp_path / "one")
    assert [(row["attack"], row["mode"]) for row in rows] == [
        ("none", "selected"),
        ("none", "krum"),
        ("sign_flip", "selected"),
        ("sign_flip", "krum"),
    ]
    written = configuration(tmp_path / "one")
    assert (written["f"], written["malicious"], written["flip_scale"]) == (2, 0.2, 3)
    # Each is the run that has the options of its own, and no others.
    own = {"none": (), "sign_flip": ("--malicious", "0.2", "--flip-scale", "3")}
    own |= {"selected": (), "krum": ("--f", "2")}
    for row in (rows[0], rows[3]):
        words = ("--attack", row["attack"], "--mode", row["mode"])
        words += (*own[row["attack"]], *own[row["mode"]], "--model", "logistic")
        out = tmp_path / row["attack"]
        assert main(["run", *SMALL[:-2], "-C", "1", *words, "--out", str(out)]) == 0
        (alone,) = table(out)
        assert float(alone["test_loss"]) == pytest.approx(float(row["test_loss"]), rel=1e-3)
    # It is written, read, resumed and shown as any other.
    assert sweep(tmp_path / "one" / "configuration.toml", out=tmp_path / "two") == 0
    for name in FILES:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert sweep("--resume", out=tmp_path / "one") == 0
    page = tmp_path / "page.html"
    assert main(["report", str(tmp_path / "one"), "--out", str(page)]) == 0
    assert all(word in page.read_text() for word in ("sign_flip", "krum", "malicious"))


@pytest.mark.slow
def test_an_epsilon_is_of_a_grid(tmp_path):
    """It stays an epsilon, in the place of the noise that each configuration needs for it."""
    pytest.importorskip("dp_accounting")
    options = ("--privacy", "central", "--clip", 1, "--epsilon", 8, "--grid", "fraction=0.3,0.5")
    assert sweep(*SMALL[:-2], "--model", "logistic", *options, out=tmp_path / "one") == 0
    written = configuration(tmp_path / "one")
    assert written["epsilon"] == 8
    assert "noise_multiplier" not in written
    assert sweep("--resume", out=tmp_path / "one") == 0
    assert sweep(tmp_path / "one" / "configuration.toml", out=tmp_path / "two") == 0
    assert table(tmp_path / "one") == table(tmp_path / "two")


@pytest.mark.slow
def test_zips_and_draws(tmp_path):
    options = ("--zip", "epochs=1,2", "batch-size=10,full", "--seeds", 1, "--metric", "test_loss")
    draws = ("--random", 2, "client_lr=loguniform(1e-3,1)", "mode=choice(selected,uniform)")
    assert sweep(*SMALL[:4], *options, *draws, "seed=3", out=tmp_path / "one") == 0
    rows = table(tmp_path / "one")
    assert [(row["epochs"], row["batch_size"]) for row in rows] == [
        ("1", "10"),
        ("1", "10"),
        ("2", "full"),
        ("2", "full"),
    ]
    lrs = [float(row["client_lr"]) for row in rows]
    assert lrs[:2] == lrs[2:]
    assert lrs[0] != lrs[1]
    assert all(1e-3 <= lr < 1 for lr in lrs)
    assert configuration(tmp_path / "one")["zip"] == [
        {"epochs": [1, 2], "batch_size": [10, "full"]}
    ]
    assert configuration(tmp_path / "one")["random"]["seed"] == 3
    assert sweep(tmp_path / "one" / "configuration.toml", out=tmp_path / "two") == 0
    assert table(tmp_path / "two") == rows


def test_options_override_the_file(tmp_path):
    (tmp_path / "mine.toml").write_text(
        "clients = 10\nrounds = 9\nseeds = 3\n[grid]\nclient_lr = [1, 2, 3]\nmode = ['uniform']\n"
    )
    options = ("--rounds", 1, "--seeds", 1, "--grid", "client_lr=0.1")
    assert sweep(tmp_path / "mine.toml", *options, out=tmp_path / "out") == 0
    found = configuration(tmp_path / "out")
    assert (found["rounds"], found["seeds"]) == (1, 1)
    assert found["grid"] == {"client_lr": [0.1], "mode": ["uniform"]}
    assert "client_lr" not in found
    assert len(table(tmp_path / "out")) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--grid", "mu=0,0.1"], "mu belongs to algorithm .*fedprox.*; the algorithm is fedavg"),
        (["--grid", "client_rl=1"], "unknown axis 'client_rl'; did you mean 'client_lr'?"),
        (["--grid", "lr=1"], "unknown axis 'lr'; did you mean 'client_lr' or "),
        (
            ["--grid", "client_lr=1", "epochs=1,2"],
            "epochs=1,2 was taken for CONFIG.* each axis "
            "behind an option of its own, as --grid epochs=1,2$",
        ),
        (["--grid", "client_lr=1", "mu=0", "epochs=1"], "arguments: epochs=1; .* --grid epochs=1$"),
        (["--grid", "client_lr"], "an axis must be NAME=VALUE,VALUE,...; got 'client_lr'"),
        (["--grid", "epochs=1,2.5"], "error: grid.epochs must be a whole number; got 2.5"),
        (["--grid", "client_lr=0.1,0.1"], "grid.client_lr must have each value once"),
        (["--grid", "client_lr=0.1,-1"], "error: client_lr must be .*positive; got -1"),
        (["--grid", "rounds=1,2"], "rounds cannot be an axis: it is a column"),
        (["--grid", "seed=1,2"], "seed cannot be an axis: .*--seeds"),
        (["--grid", "dataset=digits,wind"], "dataset cannot be an axis"),
        (["--grid", "clients=10,2000"], "at most the 1437 examples; got 2000"),
        (["--grid", "epochs=1", "--zip", "epochs=2", "client_lr=1"], "must not share names"),
        (["--zip", "epochs=1,2"], "error: --zip must have two axes or more; got epochs"),
        (["--grid", "epochs=1,2", "-E", "1"], "error: --epochs is an axis and an option, too"),
        (["--baselines", "x"], "--baselines is an option of fedjax-sim run"),
        (["--zip", "epochs=1,2", "client_lr=1"], "zipped axes must have the same length"),
        (["--random", "client_lr=uniform(0,1)"], "random must begin with a number"),
        (["--random", "2", "client_lr=normal(0,1)"], "random.client_lr must be uniform"),
        (["--random", "2", "epochs=uniform(1,5)"], "random.epochs must be a choice"),
        (["--random", "2", "client_lr=loguniform(0,1)"], "low must be finite and positive"),
        (["--random", "0", "client_lr=uniform(0,1)"], "random.num must be .*got 0"),
        (["--seeds", "0"], "error: --seeds must be .*got 0"),
        (
            ["--grid", "attack=none,alie", "--malicious", "0.2", "--flip-scale", "2"],
            "--flip-scale belongs to attack sign_flip; the attack is none and alie$",
        ),
        (
            ["--grid", "mode=selected,median", "--f", "2"],
            "--f belongs to mode krum and multi_krum; the mode is selected and median$",
        ),
        (
            ["--grid", "attack=none,alie", "--grid", "malicious=0.1,0.2"],
            "malicious belongs to attack .*; there is no attack$",
        ),
        (["--clip", "1", "--grid", "client_lr=1"], "--clip belongs to .*; there is no privacy$"),
        (["--metric", "accuracy"], "unknown metric 'accuracy'; did you mean '\\w+_accuracy'"),
    ],
)
def test_bad_options_are_one_line_and_code_2(tmp_path, capsys, options, message):
    assert re.search(message, refused(capsys, *options, out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("grid = 3", "grid must be a table; got 3"),
        ("[grid]\nclient_lr = 0.1", "grid.client_lr must be a list of values; got 0.1"),
        ("[grid]\nclient_rl = [0.1]", "unknown axis 'client_rl'; did you mean 'client_lr'?"),
        ("[grid]\nclient_lr = ['a']", "grid.client_lr must be a number; got 'a'"),
        ("[random]\nclient_lr = 'uniform(0,1)'", "random.num must be a whole number; got None"),
        ("seeds = 'x'", "seeds must be a whole number"),
        ("metric = 3", "metric must be text; got 3"),
        ("[girds]\na = 1", "unknown name 'girds'; did you mean 'grid'?"),
    ],
)
def test_a_bad_file_is_one_line_and_code_2(tmp_path, capsys, text, message):
    (tmp_path / "mine.toml").write_text(text)
    assert message in refused(capsys, tmp_path / "mine.toml", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_an_interrupt_and_a_resume_change_no_bit(tmp_path, capsys, monkeypatch):
    options = (*SMALL, "--grid", "client_lr=0.01,0.1", "--grid", "mode=selected,median")
    options += ("--seeds", 2)
    train = command.sweep

    def interrupted(*arguments, on_progress, **more):
        told = []

        def tell(now):
            on_progress(now)
            if "median" in now.says and not told:  # a first round of the second group
                told.append(now)
                signal.raise_signal(signal.SIGTERM)

        return train(*arguments, on_progress=tell, **more)

    monkeypatch.setattr(command, "sweep", interrupted)
    assert sweep(*options, out=tmp_path / "cut") == 130
    said = capsys.readouterr().out
    assert "Interrupted: 4 of 8 runs are through, and what was computed is saved" in said
    assert "rounds" in said
    assert {row["rounds"] for row in table(tmp_path / "cut")} == {"4", "1"}
    assert not json.loads((tmp_path / "cut" / "summary.json").read_text())["complete"]
    monkeypatch.undo()
    assert "cannot be resumed: --rounds is 4 there and 5 here" in refused(
        capsys, "--rounds", 5, "--resume", out=tmp_path / "cut"
    )
    assert sweep("--resume", out=tmp_path / "cut") == 0
    assert sweep(*options, out=tmp_path / "whole") == 0
    for name in FILES:
        whole = (tmp_path / "whole" / name).read_bytes()
        assert (tmp_path / "cut" / name).read_bytes() == whole
    assert sweep(*options, "--overwrite", out=tmp_path / "cut") == 0
    assert "holds results already" in refused(capsys, *options, out=tmp_path / "cut")


@pytest.mark.slow
def test_diverged_is_marked(tmp_path, capsys):
    options = ("--dataset", "wind", "--rounds", 3, "--grid", "client_lr=0.02,1000")
    assert sweep(*options, out=tmp_path) == 0
    said = capsys.readouterr().out
    assert re.search(r"best +0\.02 ", said)
    assert re.search(r" 1000 .*DIVERGED", said)
    assert {row["diverged"] for row in table(tmp_path)} == {"True", "False"}


@pytest.mark.slow
def test_seeds_alone(tmp_path, capsys):
    assert sweep(*SMALL, "--seeds", 3, "--seed", 4, out=tmp_path) == 0
    assert "1 configuration x 3 seeds = 3 runs" in capsys.readouterr().out
    assert [row["seed"] for row in table(tmp_path)] == ["4", "5", "6"]


@pytest.mark.slow
def test_shards(tmp_path, capsys, monkeypatch):
    """One is interrupted: `report` reads what is there, and another one completes it."""
    grid = (*SMALL, "--grid", "client_lr=0.1,0.2,0.3", "--seeds", 1)
    run_batch, out = shared_work.run_batch, tmp_path / "shared"

    def run(*arguments):
        columns = run_batch(*arguments)
        signal.raise_signal(signal.SIGTERM)
        return columns

    with monkeypatch.context() as patch:
        patch.setattr(shared_work, "run_batch", run)
        assert sweep(*grid, "--shard", "2/2", out=out) == 130
    assert f"other shards go on, and fedjax-sim report {out}" in capsys.readouterr().out
    shared = {"configuration.toml", "sweep.json", "batches", "claims"}
    assert {path.name for path in out.iterdir()} == shared
    assert main(["report", str(out), "--out", str(tmp_path / "page.html")]) == 0
    part = json.loads((out / "summary.json").read_text())
    assert (part["complete"], part["score"], part["num_runs"]) == (False, "test_accuracy", 3)
    (row,) = table(out)
    assert row["client_lr"] == "0.3"

    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "0")
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "2")
    assert sweep(*grid, "--shard", "auto", out=out) == 0
    rows = table(out)
    assert [row["client_lr"] for row in rows] == ["0.1", "0.2", "0.3"]
    whole = json.loads((out / "summary.json").read_text())
    assert whole["complete"]
    assert {**whole, "complete": False, "versions": 0} == {
        name: part[name] if name != "versions" else 0 for name in whole
    }

    says = refused(capsys, *grid, "--shard", "3/2", out=out)
    assert "--shard must be" in says
    says = refused(capsys, *grid, "--shard", "1/2", "--overwrite", out=out)
    assert "--shard cannot be given with --overwrite" in says
    says = refused(capsys, *SMALL, "--grid", "client_lr=0.1,0.2", "--shard", "1/2", out=out)
    assert "grid" in says
