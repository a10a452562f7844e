"""`fedjax-sim run --distributed`: processes of one machine, as a scheduler would start them."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

import fedjax_sim as fs
from fedjax_sim.cli import machine, main
from fedjax_sim.results.folder import RUN, RunFolder

SECONDS = 900  # that they may take, of a machine with much else to do
OPTIONS = ("-K", "12", "-C", "0.5", "-E", "1", "--rounds", "3", "--execution", "vmapped")


def start(folder, count, commands, meanwhile=lambda processes: None):
    """Starts processes that know each other by the environment; returns (code, output) of each.

    Args:
      count: how many they are told that they are.
      meanwhile: is called with the processes once they are started.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    environment = {**os.environ, "JAX_COORDINATOR_ADDRESS": address}
    environment["JAX_NUM_PROCESSES"] = str(count)
    logs, processes = [folder / f"log-{index}.txt" for index in range(len(commands))], []
    try:
        for index, (log, options) in enumerate(zip(logs, commands, strict=True)):
            command = [sys.executable, "-m", "fedjax_sim.cli", "run", *map(str, options)]
            with log.open("wb") as file:
                processes.append(
                    subprocess.Popen(
                        [*command, "--distributed", "--cores", "1"],
                        stdout=file,
                        stderr=subprocess.STDOUT,
                        env={**environment, "JAX_PROCESS_ID": str(index)},
                    )
                )
        meanwhile(processes)
        codes = [process.wait(timeout=SECONDS) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [(code, log.read_text()) for code, log in zip(codes, logs, strict=True)]


@pytest.mark.slow
def test_four_processes_are_one_run(tmp_path):
    """To rounding: sums of four parts are added in another order. The first one writes."""
    shared = tmp_path / "shared"
    answers = start(tmp_path, 4, [(*OPTIONS, "--out", shared)] * 4)
    for code, output in answers:
        assert code == 0, output
    assert "3 rounds, on 4 devices of 4 processes" in answers[0][1]
    assert "Wrote summary.json" in answers[0][1]
    for _, output in answers[1:]:
        assert "Wrote" not in output
        assert "rounds" not in output

    assert main(["run", *OPTIONS, "--cores", "1", "--out", str(tmp_path / "alone")]) == 0
    names = {path.name for path in shared.iterdir()}
    assert names == {path.name for path in (tmp_path / "alone").iterdir()}
    assert RunFolder(shared).numbers(RUN)[-1] == 3
    models = [jax.tree.leaves(fs.load(path).params) for path in (shared, tmp_path / "alone")]
    for x, y in zip(*models, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)
    summaries = [
        json.loads((tmp_path / f / "summary.json").read_text()) for f in ("shared", "alone")
    ]
    assert summaries[0]["status"] == summaries[1]["status"] == "finished"


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_is_killed_ends_the_other_and_what_is_saved_goes_on(tmp_path, victim):
    """By a line of its own within a minute, be it the one that writes or the other."""
    shared, rounds = tmp_path / "shared", 100_000
    seconds = []

    def kill(processes):
        until = time.monotonic() + SECONDS
        while not RunFolder(shared).numbers(RUN):
            assert all(process.poll() is None for process in processes)
            assert time.monotonic() < until
            time.sleep(0.1)
        processes[victim].kill()
        began = time.monotonic()
        processes[1 - victim].wait(timeout=SECONDS)
        seconds.append(time.monotonic() - began)

    options = (*OPTIONS[:-4], "--rounds", rounds, "--execution", "vmapped")
    answers = start(tmp_path, 2, [(*options, "--out", shared)] * 2, kill)
    code, output = answers[1 - victim]
    assert answers[victim][0] == -signal.SIGKILL
    assert code == 1, output
    last = output.strip().splitlines()[-1]
    assert last.startswith("fedjax-sim run: error: "), output
    assert "what is saved can be resumed by all" in last
    done = RunFolder(shared).numbers(RUN)[-1]
    assert f"rounds 1 to {done} are saved, and --resume goes on from there" in last
    assert seconds[0] < 60
    assert "Traceback" not in output

    resumed = (*OPTIONS[:-4], "--rounds", done + 3, "--execution", "vmapped", "--resume")
    for code, output in start(tmp_path, 2, [(*resumed, "--out", shared)] * 2):
        assert code == 0, output
    whole = (*OPTIONS[:-4], "--rounds", done + 3, "--execution", "vmapped")
    for code, output in start(tmp_path, 2, [(*whole, "--out", tmp_path / "whole")] * 2):
        assert code == 0, output
    models = [jax.tree.leaves(fs.load(path).params) for path in (shared, tmp_path / "whole")]
    for x, y in zip(*models, strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.slow
def test_processes_that_were_given_different_runs(tmp_path):
    shared = ("--out", tmp_path / "shared")
    commands = [(*OPTIONS, "--client-lr", rate, *shared) for rate in (0.1, 0.2)]
    for code, output in start(tmp_path, 2, commands):
        assert code == 2
        assert "must be the same on all processes of its mesh" in output
        assert "client_lr is 0.1 at process 0 and 0.2 at process 1" in output.replace(
            "--client-lr", "client_lr"
        )
    assert not RunFolder(tmp_path / "shared").held()  # so that the right command needs no option


@pytest.mark.slow
def test_a_process_that_waits_says_so_and_ends_at_the_first_signal(tmp_path):
    def end(processes):
        until = time.monotonic() + SECONDS
        while "Waits for all 2 processes" not in (tmp_path / "log-0.txt").read_text():
            assert processes[0].poll() is None
            assert time.monotonic() < until
            time.sleep(0.1)
        processes[0].send_signal(signal.SIGTERM)

    ((code, output),) = start(tmp_path, 2, [(*OPTIONS, "--out", tmp_path / "out")], end)
    assert code == 130
    lines = output.strip().splitlines()
    assert lines[-2].startswith("Waits for all 2 processes of this run at localhost:")
    assert lines[-1].startswith("Interrupted while it waited for other processes")
    assert not (tmp_path / "out").exists()


@pytest.fixture
def refused(tmp_path, capsys, monkeypatch):
    for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "JAX_COORDINATOR_ADDRESS"):
        monkeypatch.delenv(name, raising=False)

    def line(*options, **environment):
        for name, text in environment.items():
            monkeypatch.setenv(name, text)
        with pytest.raises(SystemExit) as exit:
            main(["run", *OPTIONS, *options, "--distributed", "--out", str(tmp_path / "out")])
        assert exit.value.code == 2
        return capsys.readouterr().err

    return line


def test_what_is_refused(refused, monkeypatch):
    def nobody(**options):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(machine.jax.distributed, "initialize", nobody)
    says = refused()
    assert "--distributed needs processes that JAX finds, as those of srun" in says
    assert "JAX says: coordinator_address should be defined." in says
    assert "baselines" in refused("--baselines", "centralised")
    says = refused(JAX_NUM_PROCESSES="2", JAX_PROCESS_ID="2")
    assert "JAX_PROCESS_ID must be below JAX_NUM_PROCESSES, 2; got 2" in says
    says = refused(JAX_NUM_PROCESSES="two")
    assert "JAX_NUM_PROCESSES must be a number; got 'two'" in says
    for address in ("localhost", "localhost:abc", "localhost:0", "localhost:70000"):
        says = refused(JAX_NUM_PROCESSES="2", JAX_PROCESS_ID="0", JAX_COORDINATOR_ADDRESS=address)
        assert "JAX_COORDINATOR_ADDRESS must be host:port" in says
        assert f"got '{address}'" in says
