"""`fedjax-sim run` and `report`, as a user meets them."""

import csv
import errno
import json
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
import types
from pathlib import Path

import pytest

from fedjax_sim import load
from fedjax_sim.cli import main
from fedjax_sim.cli.commands import run as command
from fedjax_sim.cli.files import toml
from fedjax_sim.core.files import SaveError
from fedjax_sim.host.checkpoints import Checkpoints
from fedjax_sim.results import folder
from fedjax_sim.results.folder import RUN, SWEEP, RunFolder

SMALL = ("-K", "10", "--rounds", "4", "-E", "1")
FILES = {"summary.json", "table.csv", "rounds.csv", "configuration.toml", "model.npz"}
RESUMED_BY = {"experiment.json", "checkpoints"}


def run(*options, out):
    return main(["run", *map(str, options), "--out", str(out)])


def refused(capsys, *options, out):
    """The one line that a mistake is answered with."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit:
        run(*options, out=out)
    assert exit.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory):
    """The folder of a finished run of SMALL; who changes it asks for `finished`."""
    out = tmp_path_factory.mktemp("finished")
    assert run(*SMALL, out=out) == 0
    return out


@pytest.fixture
def finished(finished_run, tmp_path):
    """A copy, in `tmp_path`, of what a finished run of SMALL left."""
    shutil.copytree(finished_run, tmp_path, dirs_exist_ok=True)
    return tmp_path


def names(folder):
    return {path.name for path in folder.iterdir()}


def read(folder, name="rounds.csv"):
    return (folder / name).read_bytes()


def test_a_run_writes_what_it_promises(tmp_path, capsys):
    assert run(*SMALL, "--per-client", out=tmp_path) == 0
    said = capsys.readouterr()
    assert said.out.startswith("fedavg on digits (dirichlet): K=10 clients of")
    assert "examples, m=1 in each round, 4 rounds" in said.out
    assert "model.npz is the final model, of round 4" in said.out
    assert "After 4 rounds: test_accuracy 0." in said.out
    assert "4 of 4 rounds" in said.err
    assert names(tmp_path) == FILES | RESUMED_BY | {"clients.csv"}
    summary = json.loads(read(tmp_path, "summary.json"))
    assert summary["kind"] == "run"
    assert summary["score"] == "test_accuracy"
    assert summary["complete"]
    assert summary["status"] == "finished"
    assert summary["configuration"]["alpha"] == 0.3
    assert summary["bytes"] == {"down": 2600, "up": 2600}  # 650 numbers
    assert summary["bytes_of"] == "one message to a client (down), and one from it (up)"
    with (tmp_path / "rounds.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["round"] for row in rows] == ["1", "2", "3", "4"]
    assert {"test_accuracy", "clients_accuracy_p10", "bytes_up"} <= set(rows[0])


def test_configuration_goes_round(tmp_path):
    options = ("--dataset", "wind", "--rounds", 2, "-B", "full", "--schedule", "cosine")
    assert run(*options, out=tmp_path / "one") == 0
    assert run(tmp_path / "one" / "configuration.toml", out=tmp_path / "two") == 0
    for name in ("configuration.toml", "rounds.csv", "table.csv", "summary.json"):
        assert read(tmp_path / "one", name) == read(tmp_path / "two", name)
    configuration = tomllib.loads(read(tmp_path / "one", "configuration.toml").decode())
    assert configuration["batch_size"] == "full"
    assert configuration["decay_rounds"] == 2
    assert "alpha" not in configuration


def test_toml_is_toml():
    values = {
        "text": 'a "quoted" \\ path, ü\n',
        "yes": True,
        "whole": 3,
        "small": 1e-05,
        "big": 1e22,
        "list": [1, 2.5, "x"],
        "table": {"a": [0.1]},
        "tables": [{"b": 1}, {"c": [False]}],
    }
    assert tomllib.loads(toml(values)) == values


def test_a_folder_is_no_file(tmp_path, capsys):
    said = refused(capsys, tmp_path, out=tmp_path / "out")
    assert f"{tmp_path} is a folder; it holds no configuration.toml" in said
    (tmp_path / "configuration.toml").write_text("rounds = 1")
    said = refused(capsys, tmp_path, out=tmp_path / "out")
    assert said.endswith(f"; did you mean {tmp_path / 'configuration.toml'}?")


def test_options_override_the_file(tmp_path):
    config = tmp_path / "mine.toml"
    config.write_text("clients = 10\nrounds = 3\nclient_lr = 1\n")
    assert run(config, "--rounds", 2, out=tmp_path / "out") == 0
    configuration = tomllib.loads(read(tmp_path / "out", "configuration.toml").decode())
    assert (configuration["rounds"], configuration["clients"]) == (2, 10)
    assert configuration["client_lr"] == 1.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("client_rl = 0.1", "unknown name 'client_rl'; did you mean 'client_lr'?"),
        ("lr = 0.1", "unknown name 'lr'; did you mean 'client_lr' or "),
        ("client_lr = -1", "error: client_lr must be finite and positive"),
        ("keep_model = true", "error: keep_model must be final or best; got True"),
        ("zzz = 1", "unknown name 'zzz'; known are dataset, "),
        ("rounds = 2.5", "rounds must be a whole number; got 2.5"),
        ("rounds = true", "rounds must be a whole number; got True"),
        ('alpha = "x"', "alpha must be a number; got 'x'"),
        ("dataset = 3", "dataset must be text; got 3"),
        ("per_client = 1", "per_client must be true or false; got 1"),
        ("batch_size = 1.5", "batch_size must be a whole number or full; got 1.5"),
        ("mu = 0.1", "fednova, fedprox and moon; the algorithm is fedavg"),
        ("rounds = ", "mine.toml is not a TOML file: Invalid value"),
        ("\ufeffrounds = 0", "rounds must be a whole number, at least 1; got 0"),
        ("[grid]\nclient_lr = [1.0]", "grid belongs to fedjax-sim sweep"),
        ('baselines = "local_only"', "baselines must be a list of names; got 'local_only'"),
        ('baseline = ["local_only"]', "unknown name 'baseline'; did you mean 'baselines'?"),
        ('baselines = ["global"]', "unknown baseline 'global'; known are centralised, local_only"),
        ("clients = 1438", "at most the 1437 examples; got 1438"),
    ],
)
def test_a_bad_file_is_one_line_and_code_2(tmp_path, capsys, text, message):
    (tmp_path / "mine.toml").write_text(text)
    said = refused(capsys, tmp_path / "mine.toml", out=tmp_path / "out")
    assert said.startswith("fedjax-sim run: error: ")
    assert message in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["nowhere.toml"], "nowhere.toml cannot be read: No such file"),
        (["--rounds", "x"], "argument --rounds: must be a whole number; got 'x'"),
        (["--alpha", "x"], "argument --alpha: must be a number; got 'x'"),
        (["-C", "2"], r"fraction must be .*in \(0, 1\]; got 2"),
        (
            ["--mu", "0.1"],
            "error: --mu belongs to --algorithm .*fedprox.*; the algorithm is fedavg",
        ),
        (["client_lr=0.1"], "client_lr=0.1 was taken for CONFIG.* is written --client-lr 0.1$"),
        (["--fraction", "1", "x.toml", "mu=1"], "arguments: mu=1; an option is written --mu 1$"),
        (
            ["--schedule", "linear", "--decay-rounds", "9", "--rounds", "10"],
            "--decay-rounds must be .* 10 rounds where --decay-end is 0: .*round 10 on.*; got 9",
        ),
        (["--resume", "--overwrite"], "not allowed with argument"),
        (
            ["--algorithm", "scaffold", "--sampler", "with_replacement"],
            "--sampler must not draw.*use uniform or w",
        ),
        (["--baselines", "local_only", "--sampler", "with_replacement"], "local_only needs"),
        (["--baselines", "local"], "unknown baseline 'local'; did you mean 'local_only'"),
        (["--baselines", "local_only", "local_only"], "baselines must be named once each"),
        (["--lr", "0.1"], "arguments: --lr; did you mean --client-lr or .*--server-lr"),
        (["--epoch", "1"], "unrecognized arguments: --epoch; did you mean --epochs"),
        (["--client", "1"], "unrecognized arguments: --client; did you mean --clients"),
        (["--seeds", "3"], "--seeds is an option of fedjax-sim sweep and compare"),
        (["--resume"], "holds nothing to resume: there is no configuration.toml; give CONFIG"),
    ],
)
def test_bad_options_are_one_line_and_code_2(tmp_path, capsys, options, message):
    assert re.search(message, refused(capsys, *options, out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_results_are_resumed_or_replaced_only_when_asked(tmp_path, capsys, finished_run):
    (tmp_path / "batches").mkdir(parents=True)
    (tmp_path / "batches" / "mine.npz").write_text("not ours")
    (tmp_path / "notes.txt").write_text("kept")
    shutil.copytree(finished_run, tmp_path, dirs_exist_ok=True)
    before = read(tmp_path)
    assert "holds results already" in refused(capsys, *SMALL, out=tmp_path)
    said = refused(capsys, *SMALL, "--client-lr", 0.5, "--resume", out=tmp_path)
    assert "cannot be resumed: --client-lr is 0.1 there and 0.5 here" in said
    assert read(tmp_path) == before
    assert b"client_lr = 0.1" in read(tmp_path, "configuration.toml")
    assert run("--resume", out=tmp_path) == 0  # the configuration that is there
    assert read(tmp_path) == before
    (tmp_path / "checkpoints" / "mine").mkdir()
    assert run(*SMALL, "--client-lr", 0.5, "--overwrite", out=tmp_path) == 0
    assert read(tmp_path) != before
    assert b"client_lr = 0.5" in read(tmp_path, "configuration.toml")
    assert names(tmp_path) == FILES | RESUMED_BY | {"notes.txt", "batches"}
    assert names(tmp_path / "checkpoints") == {"000000004", "mine"}
    assert names(tmp_path / "batches") == {"mine.npz"}


def test_results_of_another_command_are_not_resumed(tmp_path, capsys):
    (tmp_path / "sweep.json").write_text("{}")
    said = refused(capsys, *SMALL, "--resume", out=tmp_path)
    assert "which this command cannot resume" in said


def test_resume_of_nothing_is_said(tmp_path, capsys):
    assert run(*SMALL, "--resume", out=tmp_path) == 0
    said = f"--out {tmp_path} holds no configuration.toml: it starts anew\n"
    assert capsys.readouterr().err.startswith(said)


def test_a_run_that_its_round_refuses_removes_nothing(finished, capsys):
    before = {name: read(finished, name) for name in FILES}
    options = ("--sampler", "power_of_choice", "--candidates", 1000)
    said = refused(capsys, *SMALL, "--overwrite", *options, out=finished)
    assert "--candidates must be at most K" in said
    assert {name: read(finished, name) for name in FILES} == before


@pytest.mark.parametrize("overwritten", [[], ["--baselines", "centralised"]])
def test_a_run_called_like_a_baseline_is_not_overwritten(
    finished, capsys, overwritten, finished_run
):
    below = finished / "centralised"
    shutil.copytree(finished_run, below)
    before = {name: read(below, name) for name in FILES}
    if overwritten:
        said = refused(capsys, *SMALL, "--overwrite", *overwritten, out=finished)
        assert f"{below} holds a run of its own and no baseline" in said
    else:
        assert run(*SMALL, "--overwrite", out=finished) == 0
    assert {name: read(below, name) for name in FILES} == before


def test_a_sweep_called_like_a_baseline_is_not_overwritten(tmp_path, capsys):
    below = tmp_path / "centralised"
    below.mkdir()
    (below / "sweep.json").write_text("{}")
    said = refused(capsys, *SMALL, "--overwrite", "--baselines", "centralised", out=tmp_path)
    assert f"{below} holds a run of its own and no baseline" in said
    assert names(below) == {"sweep.json"}


def test_a_signal_at_the_end_of_a_run_is_for_its_baselines(tmp_path, capsys, monkeypatch):
    def raise_it(*arguments, **options):
        done = simulate(*arguments, **options)
        signal.raise_signal(signal.SIGINT)
        return done

    simulate = command.simulate
    monkeypatch.setattr(command, "simulate", raise_it)
    assert run(*SMALL, "--baselines", "centralised", out=tmp_path) == 130
    resume = f"fedjax-sim run --resume --out {tmp_path}"
    assert f"Interrupted before centralised: {resume}" in capsys.readouterr().out
    assert not (tmp_path / "centralised" / "summary.json").exists()
    monkeypatch.setattr(command, "simulate", simulate)
    assert run("--resume", out=tmp_path) == 0
    assert (tmp_path / "centralised" / "summary.json").exists()


def test_a_configuration_alone_is_no_result(tmp_path, capsys):
    # As when a run is killed before its first checkpoint.
    (tmp_path / "configuration.toml").write_text("clients = 10\nrounds = 1\n")
    said = refused(capsys, *SMALL, out=tmp_path)
    assert "holds configuration.toml and no results" in said
    assert "give --resume or --overwrite" in said
    assert run(*SMALL, "--overwrite", out=tmp_path) == 0
    assert b"rounds = 4" in read(tmp_path, "configuration.toml")


def test_it_stops_at_the_target(tmp_path, capsys):
    options = ("-K", 10, "--rounds", 50, "-C", 1, "--target", 0.5)
    assert run(*options, out=tmp_path) == 0
    assert "Stopped: test_accuracy reached 0.5." in capsys.readouterr().out
    summary = json.loads(read(tmp_path, "summary.json"))
    assert (summary["status"], summary["complete"]) == ("stopped", True)
    with (tmp_path / "rounds.csv").open() as file:
        scores = [float(row["test_accuracy"]) for row in csv.DictReader(file)]
    assert scores[-1] >= 0.5
    assert len(scores) < 50
    assert max(scores[:-1], default=0) < 0.5


def test_diverged_is_said(tmp_path, capsys):
    assert run("--dataset", "wind", "--rounds", 3, "--client-lr", 1000, out=tmp_path) == 0
    assert "DIVERGED" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_and_a_resume_change_no_bit(tmp_path, number):
    """The real process, killed once training has begun."""
    rounds = 4000
    options = ["-K", "10", "--rounds", str(rounds), "-E", "1", "-C", "0.1"]
    options += ["--evaluate-every", "100"]
    process = subprocess.Popen(
        [sys.executable, "-m", "fedjax_sim.cli", "run", *options, "--out", str(tmp_path / "cut")],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    assert any(f"of {rounds} rounds, " in line for line in process.stdout)
    process.send_signal(number)
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert re.search(rf"Interrupted after \d+ of {rounds} rounds, which are saved", said)
    summary = json.loads(read(tmp_path / "cut", "summary.json"))
    assert not summary["complete"]
    # In a process of the same number of devices.
    for name, more in (("cut", ["--resume"]), ("whole", options)):
        done = subprocess.run(
            [sys.executable, "-m", "fedjax_sim.cli", "run", *more, "--out", str(tmp_path / name)],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
    assert read(tmp_path / "cut") == read(tmp_path / "whole")
    assert read(tmp_path / "cut", "table.csv") == read(tmp_path / "whole", "table.csv")


def test_a_second_signal_ends_at_once(tmp_path):
    """Even where Python's own handler cannot run."""
    script = (
        "import ctypes, sys\n"
        "from fedjax_sim.cli import main\n"
        "from fedjax_sim.cli.commands import run\n"
        "def call(options):\n"
        "    print('in C', flush=True)\n"
        "    ctypes.CDLL(None).system(b'exec sleep 15')\n"  # waits, whatever signal comes
        "run.call = call\n"
        "main(['run', '--out', sys.argv[1]])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "in C\n"
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=8) == 130


def test_a_full_disk_is_one_line_and_code_1(tmp_path, capsys, monkeypatch, finished_run):
    save, simulate = Checkpoints.save, command.simulate

    def full(self, number, arrays, facts):
        if number == 4:
            raise SaveError(f"checkpoint {number} was not saved in X: No space left on device")
        save(self, number, arrays, facts)

    def often(*arguments, **options):
        return simulate(*arguments, **options, checkpoint_every=3)

    monkeypatch.setattr(Checkpoints, "save", full)
    monkeypatch.setattr(command, "simulate", often)
    with pytest.raises(SystemExit) as exit:
        run(*SMALL, out=tmp_path)
    assert exit.value.code == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "checkpoint 4 was not saved in X: No space left on device; rounds 1 to 3 are" in error
    assert "--resume goes on from there" in error
    monkeypatch.undo()
    assert run(*SMALL, "--resume", out=tmp_path) == 0
    assert read(tmp_path) == read(finished_run)


def test_tables_that_cannot_be_written_are_said(tmp_path, capsys, monkeypatch):
    def write(file, rows):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("fedjax_sim.results.table._write_csv", write)
    with pytest.raises(SystemExit) as exit:
        run(*SMALL, out=tmp_path)
    assert exit.value.code == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert (
        f"not written in {tmp_path}: table.csv, rounds.csv, summary.json (No space left on device);"
        " rounds 1 to 4 are saved, and --resume goes on from there"
    ) in error
    monkeypatch.undo()
    assert run("--resume", out=tmp_path) == 0
    assert names(tmp_path) == FILES | RESUMED_BY


def test_a_target_may_come_later(finished, capsys):
    before = read(finished)
    assert run("--resume", "--target", 0.01, out=finished) == 0
    said = capsys.readouterr().out
    assert "Stopped: test_accuracy reached 0.01 in round 1 already." in said
    assert read(finished) == before
    assert b"target = 0.01" in read(finished, "configuration.toml")
    said = refused(capsys, "--resume", "--target", 0.02, out=finished)
    assert "reaches 0.02" in said
    assert "which round 1 of the 4 done had met" in said
    assert b"target = 0.01" in read(finished, "configuration.toml")


def test_more_rounds(tmp_path, capsys):
    longer, once = tmp_path / "longer", tmp_path / "once"
    assert run(*SMALL, "--evaluate-every", 3, out=longer) == 0
    assert run("--resume", "--rounds", 7, out=longer) == 0
    assert run(*SMALL, "--evaluate-every", 3, "--rounds", 7, out=once) == 0
    for name in ("rounds.csv", "table.csv", "configuration.toml", "summary.json"):
        assert read(longer, name) == read(once, name)
    said = refused(capsys, "--resume", "--rounds", 6, out=longer)
    assert f"error: --rounds must be at least the 7 that are done in --out {longer}; got 6" in said
    assert not capsys.readouterr().out  # before anything is said of the run
    assert b"rounds = 7" in read(longer, "configuration.toml")
    # As it was before runs could have more rounds.
    path = longer / "experiment.json"
    there = json.loads(path.read_text())
    assert there["configuration"]["rounds"] == 7


def test_a_schedule_over_all_rounds_has_no_more_rounds(tmp_path, capsys):
    """What is refused, and that what is advised is taken: too many cores are what is told last."""
    text = "clients = 10\nrounds = 4\nschedule = 'cosine'\ndecay_rounds = 4\ndecay_end = "
    (tmp_path / "configuration.toml").write_text(f"{text}0.0\n")
    said = refused(capsys, "--resume", "--rounds", 6, out=tmp_path)
    assert "rounds is 4 there and 6 here, on which the cosine schedule depends" in said
    assert "the rate is 0, and nobody trains; start anew: fedjax-sim run " in said
    assert "give --decay-rounds" not in said
    path, *anew = said.split("start anew: fedjax-sim run ")[1].split(" --out")[0].split()
    for wrong in (["--resume", *anew[:2], "--decay-rounds", 4], [path, *anew[:2]]):
        said = refused(capsys, *wrong, out=tmp_path if "--resume" in wrong else tmp_path / "anew")
        assert "cosine leaves a rate of 0 from round 5 on, and nobody trains; got 4" in said
    cores = ("--cores", 100000)
    assert "error: --cores" in refused(capsys, path, *anew, *cores, out=tmp_path / "anew")
    # One that ends at a rate goes on at it, and one that has not ended goes on to its end.
    (tmp_path / "configuration.toml").write_text(f"{text}0.1\n")
    said = refused(capsys, "--resume", "--rounds", 6, out=tmp_path)
    assert "give --decay-rounds 4 to go on with the one that is there, or start anew" in said
    goes_on = ("--resume", "--rounds", 6, "--decay-rounds", 4)
    assert "cores is null there" in refused(capsys, *goes_on, *cores, out=tmp_path)


def test_patience(tmp_path, capsys):
    options = (*SMALL, "--client-lr", 1e-9, "--patience", 2, "--target", 0.99)
    options += ("--keep-model", "best")
    assert run(*options, out=tmp_path) == 0
    assert load(tmp_path).configuration["patience"] == 2
    said = capsys.readouterr().out
    assert "After 3 rounds" in said
    assert "Stopped: test_accuracy was no better in 2 evaluations than the 0." in said
    assert "of round 1." in said
    assert re.search(
        r"model.npz is the best model by test_accuracy, 0\.\d+, of round 1 of 3\.", said
    )
    assert load(tmp_path).round == 1
    text = read(tmp_path, "configuration.toml")
    assert b"patience = 2" in text
    assert b'keep_model = "best"' in text
    said = refused(capsys, "--resume", "--keep-model", "final", out=tmp_path)
    assert '--keep-model is "best" there and null here' in said
    assert run("--resume", "--patience", 3, out=tmp_path) == 0
    assert "After 4 rounds" in capsys.readouterr().out
    # The model knows every setting of its run, those of when it stops, too.
    settings = tomllib.loads(read(tmp_path, "configuration.toml").decode())
    assert load(tmp_path).configuration == settings
    assert (settings["patience"], settings["target"]) == (3, 0.99)
    assert load(tmp_path).round == 1
    assert "error: --patience must be a whole number" in refused(
        capsys, *SMALL, "--patience", 0, out=tmp_path / "none"
    )


class Full:
    """A writer whose disk is full."""

    def write(self, round, values):
        raise OSError(errno.ENOSPC, "No space left on device")

    def close(self):
        pass


def test_a_writer_that_fails_is_one_line_and_code_1(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command, "tensorboard", lambda folder: Full())
    with pytest.raises(SystemExit) as exit:
        run(*SMALL, "--tensorboard", tmp_path / "events", out=tmp_path / "out")
    assert exit.value.code == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "not told of: No space left on device; rounds 1 to 1 are saved, and --resume" in error


def test_wandb(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    said = refused(capsys, *SMALL, "--wandb", "digits", out=tmp_path / "out")
    assert "writers.wandb needs wandb: pip install fedjax-sim[wandb]" in said
    assert not (tmp_path / "out").exists()
    logged = []

    def init(**settings):
        logged.append(settings)
        return types.SimpleNamespace(
            log=lambda values, step: logged.append((step, "test_accuracy" in values)),
            finish=lambda: logged.append("finish"),
        )

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    assert run(*SMALL, "--wandb", "digits", out=tmp_path / "out") == 0
    settings, *rounds, end = logged
    assert (settings["project"], settings["mode"]) == ("digits", "offline")
    assert settings["dir"] == str(tmp_path / "out")
    assert settings["config"]["client_lr"] == 0.1
    assert rounds == [(1, True), (2, True), (3, True), (4, True)]
    assert end == "finish"


@pytest.mark.parametrize("kind", [RUN, SWEEP])
def test_clearing_that_is_cut_off_leaves_what_can_be_cleared(tmp_path, monkeypatch, kind):
    """Killed before each of its steps."""
    left, unlink, rmtree = [0], Path.unlink, shutil.rmtree

    def step(do):
        def counted(*arguments, **options):
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            do(*arguments, **options)

        return counted

    monkeypatch.setattr(Path, "unlink", step(unlink))
    monkeypatch.setattr(folder.shutil, "rmtree", step(rmtree))
    kept = ["batches", "checkpoints"]
    for steps in range(100):
        out = tmp_path / str(steps)
        for name in (
            "checkpoints/000000003/x",
            "checkpoints/000000004/x",
            "batches/000000.npz",
            "batches/000001/000000002/x",
            "summary.json",
            "table.csv",
            "rounds.csv",
            "configuration.toml",
            kind.manifest,
        ):
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            (out / name).write_text("x")
        left[0] = steps
        try:
            RunFolder(out).clear()
        except KeyboardInterrupt:
            there = names(out)
            assert steps == 0 or "summary.json" not in there  # it does not look whole
            if there & {*kept}:
                assert {kind.manifest, "configuration.toml"} <= there
            if there:
                with pytest.raises(ValueError, match=r"give resume \(--resume\) or"):
                    RunFolder(out).check(kind, resume=False, overwrite=False)
        else:
            break
    assert 10 < steps < 100
    assert not names(out)


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboardX")
    assert run(*SMALL, "--tensorboard", tmp_path / "events", out=tmp_path / "out") == 0
    (events,) = (tmp_path / "events").iterdir()
    assert b"test_accuracy" in events.read_bytes()


@pytest.mark.slow
def test_baselines(tmp_path, capsys):
    options = (*SMALL, "--baselines", "centralised", "local_only")
    assert run(*options, out=tmp_path) == 0
    said = capsys.readouterr().out
    assert re.search(r"centralised: test_accuracy 0\.\d{4}", said)
    assert re.search(r"local_only: test_accuracy 0\.\d{4}, mean of the clients' own models", said)
    for name in ("centralised", "local_only"):
        summary = json.loads(read(tmp_path / name, "summary.json"))
        assert summary["configuration"]["baseline"] == name
        with (tmp_path / name / "table.csv").open() as file:
            row = next(csv.DictReader(file))
        assert 0 < float(row["test_accuracy"]) < 1
        assert "bytes_down" not in row  # nothing is sent
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert "centralised <small>run</small>" in page
    assert "local_only <small>run</small>" in page
    for name in FILES | RESUMED_BY:
        (tmp_path / name).rename(tmp_path / f"{name}.aside")
    said = refused(capsys, *options, out=tmp_path)  # what the baselines left is looked for, too
    assert f"{tmp_path / 'centralised'} holds results already" in said
    for name in FILES | RESUMED_BY:
        (tmp_path / f"{name}.aside").rename(tmp_path / name)
    # Of the configuration, and one that comes later.
    configuration = tmp_path / "configuration.toml"
    again = tmp_path / "again"
    assert run(configuration, out=again) == 0
    assert {"centralised", "local_only"} <= names(again)
    shutil.rmtree(again / "local_only")
    text = configuration.read_text().replace(', "local_only"', "")
    (again / "configuration.toml").write_text(text)
    assert run("--resume", "--baselines", "local_only", out=again) == 0
    assert (again / "configuration.toml").read_bytes() == configuration.read_bytes()
    for name in ("rounds.csv", "table.csv"):
        assert read(again / "local_only", name) == read(tmp_path / "local_only", name)
    assert run(*options, "--overwrite", out=tmp_path) == 0


@pytest.mark.slow
def test_baselines_have_the_rounds_of_a_run_that_reached_its_target(tmp_path, capsys):
    options = (
        "--rounds",
        40,
        "--clients",
        50,
        "--fraction",
        0.04,
        "--client-lr",
        0.1,
        "--partition",
        "iid",
        "--target",
        0.85,
    )
    assert run(*options, "--baselines", "centralised", "local_only", out=tmp_path) == 0
    said = capsys.readouterr().out
    done = len(read(tmp_path, "rounds.csv").splitlines()) - 1
    assert done < 25
    for name in ("centralised", "local_only"):
        assert len(read(tmp_path / name, "rounds.csv").splitlines()) - 1 == done
    with (tmp_path / "local_only" / "table.csv").open() as file:
        trained = int(next(csv.DictReader(file))["trained_clients"])
    assert 0 < trained <= 2 * done < 50
    assert f"({50 - trained} of 50 never trained, and have the first one)" in said
    assert run("--resume", out=tmp_path) == 0


@pytest.fixture
def page(monkeypatch):
    """What a page is asked to write."""
    asked = []

    def write(folders, out, *, mixed, overwrite):
        if out.exists() and not overwrite:
            raise ValueError(f"out {out} is there already")
        asked.append(([folder.name for folder in folders], mixed))
        out.write_text("page")

    monkeypatch.setitem(sys.modules, "fedjax_sim.report.page", types.SimpleNamespace(write=write))
    return asked


def test_report(tmp_path, capsys, page):
    out = tmp_path / "page.html"
    options = ["report", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(out)]
    assert main(options) == 0
    assert capsys.readouterr().out == f"Wrote {out}\n"
    with pytest.raises(SystemExit) as exit:
        main(options)
    assert exit.value.code == 2
    said = capsys.readouterr().err
    assert said == f"fedjax-sim report: error: --out {out} is there already\n"
    assert main([*options, "--overwrite", "--mixed"]) == 0
    assert page == [(["a", "b"], False), (["a", "b"], True)]


def test_a_report_of_a_sweep_of_which_nothing_is_complete(tmp_path, capsys, monkeypatch, page):
    """As of shards that have begun; it is told in a line and no page is written."""
    folder = RunFolder(tmp_path / "sweep")
    options = ["-K", "12", "--rounds", "1", "--grid", "client_lr=0.1", "--shard", "1/1"]

    def stopped(*given):
        raise ValueError("stopped")

    with monkeypatch.context() as patched:
        patched.setattr("fedjax_sim.sweeps.shared_work.run_batch", stopped)
        with pytest.raises(SystemExit):
            main(["sweep", *options, "--cores", "1", "--out", str(folder.path)])
    folder.claims.mkdir(exist_ok=True)
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit:
        main(["report", str(folder.path), "--out", str(tmp_path / "page.html")])
    assert exit.value.code == 2
    assert "sweep has nothing to report yet: no batch of its sweep is" in capsys.readouterr().err
    assert not page


# The models declare themselves where flax, which imports rich, defines them.
OF_HELP = {
    "run": {"orbax", "matplotlib", "pandas"},
    "sweep": {"orbax", "matplotlib", "pandas"},
    "compare": {"orbax", "matplotlib", "pandas"},
    "report": {"flax", "orbax", "matplotlib", "rich", "pandas"},
}


@pytest.mark.parametrize("name", OF_HELP)
def test_help_brings_in_no_more_than_the_package_does(name):
    code = (
        "import sys; from fedjax_sim.cli import main\n"
        f"try: main([{name!r}, '--help'])\n"
        "except SystemExit as exit: assert exit.code == 0\n"
        f"assert not {OF_HELP[name]} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--out" in done.stdout
