"""A sweep shared by 1, 2 and 4 processes, of which two are killed: part `shards` of the record.

Sixteen learning rates of a 2NN on the digits, each process on one core. The programs are in a cache
before the first is timed, so that what is shared is training, beside some seconds of each process's
own start.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_sim.report.reading import load

RATES = np.geomspace(0.01, 0.3, 16)  # all stable: beyond, rounding alone ends elsewhere
ROUNDS = 400
SECONDS = 600  # that a sweep may take


def command(out: Path, shard: str) -> list[str]:
    """What a user starts on each machine."""
    return [
        *(sys.executable, "-m", "fedjax_sim.cli", "sweep", "--model", "2nn"),
        *("--grid", "client_lr=" + ",".join(f"{rate:.4g}" for rate in RATES)),
        *("--rounds", str(ROUNDS), "--evaluate-every", str(ROUNDS // 4), "--cores", "1"),
        *("--shard", shard, "--out", str(out)),
    ]


def shared(out: Path, count: int, killed: int, cache: Path) -> float:
    """Seconds until the last of so many processes has ended; some are killed at random moments."""
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        # One thread each, so that two processes of one core use two.
        "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
    }
    start = time.perf_counter()
    processes = [
        subprocess.Popen(
            command(out, f"{i + 1}/{count}"),
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        for i in range(count)
    ]
    chance = random.Random(0)
    victims = chance.sample(processes, killed)
    for victim in victims:
        while not list((out / "claims").glob("*")) and victim.poll() is None:
            time.sleep(0.05)
        time.sleep(chance.uniform(0, 4))
        victim.kill()
    for process in processes:
        _, errors = process.communicate(timeout=SECONDS)
        if process.returncode and process not in victims:
            raise RuntimeError(errors.decode()[-2000:])
    return time.perf_counter() - start


def curves(out: Path) -> dict[str, list[np.ndarray]]:
    """Of each configuration the test accuracies of each of its runs."""
    runs: dict[str, list[np.ndarray]] = {}
    for run in load(out).results.runs:
        runs.setdefault(str(run.configuration), []).append(run.measured("test_accuracy"))
    return runs


def measured(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Seconds by the number of processes, and whether the results are those of one process."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=options.folder) as made:
        folder = Path(made)
        # The width of a batch, and so the program, depends on the number of processes.
        for count, killed in ((1, 0), (2, 0), (4, 0), (4, 2)):
            seconds = []
            for repeat in range(options.repeats + 1):
                out = folder / f"{count}-{killed}-{repeat}"
                seconds.append(shared(out, count, killed, folder / "cache"))
            expected, results = curves(folder / "1-0-0"), curves(out)
            if expected.keys() != results.keys():
                raise RuntimeError(f"{len(results)} of {len(expected)} configurations are there")
            rows.append(
                {
                    "rates": [float(RATES[0]), float(RATES[-1])],
                    "processes": count,
                    "killed": killed,
                    "seconds": min(seconds[1:]),
                    "configurations": len(results),
                    "once": all(len(runs) == 1 for runs in results.values()),
                    "apart": max(
                        float(np.max(np.abs(runs[0] - expected[name][0])))
                        for name, runs in results.items()
                    ),
                }
            )
            print(rows[-1], file=sys.stderr)
    return rows
