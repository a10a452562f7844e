"""Shakespeare's first rounds: accuracy by role and IID, and the time that packing saves."""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from fedjax_sim import execution
from fedjax_sim.core.files import replace_file, to_json
from fedjax_sim.host.driver import Progress
from fedjax_sim.host.simulate import simulate
from fedjax_sim.host.stopping import reaches
from fedjax_sim.report import reading
from fedjax_sim.results import Results
from fedjax_sim.results.folder import RUN, RunFolder
from fedjax_sim.settings import build
from fedjax_sim.settings.setting import Setting

NAME = "shakespeare"
HEADING = (
    "McMahan et al. 2017 (arXiv 1602.05629), table 2: the character LSTM on Shakespeare, E = 1, "
    "B = 10, C = 0.1: its first rounds"
)
ROUNDS, TARGET = 20, 0.54
SPREADS = {"by role": "natural", "IID": "iid"}
PUBLISHED = {"by role": 164, "IID": 460}  # rounds to 54 %
SETTING = Setting(
    dataset="shakespeare",
    fraction=0.1,
    epochs=1,
    batch_size=10,
    client_lr=1.0,
    rounds=ROUNDS,
    evaluate_every=2,
    target=TARGET,
)
_TIMED = 0.01  # C of the rounds whose time is measured, packed and padded
_TIMES = "times.json"


def is_through(out: Path) -> bool:
    """Whether both splits and the times are complete."""
    return load(out).keys() == SPREADS.keys() and (out / _TIMES).exists()


def run(out: Path, mesh: Mesh | None, on_progress: Callable[[Progress], None]) -> bool:
    """Runs both splits, saving each as it goes, then the times; returns whether all is complete."""
    for spread, partition in SPREADS.items():
        folder = out / partition
        setting = replace(SETTING, partition=partition).resolved()
        simulation = simulate(
            build.experiment(setting, mesh),
            jax.random.key(0),
            out=folder,
            resume=RunFolder(folder).holds(RUN),
            stop=reaches(setting.score, TARGET),
            on_progress=on_progress,
            configuration=setting.values(),
        )
        if simulation.status == "interrupted":
            return False
        simulation.results({"clients": spread}).save(folder, {"kind": "run"})
    if not (out / _TIMES).exists():
        times_json = to_json(_times(mesh))
        replace_file(out / _TIMES, lambda file: file.write(times_json))
    return True


def load(out: Path) -> dict[str, Results]:
    """The results of the splits that are complete."""
    folders = {spread: out / partition for spread, partition in SPREADS.items()}
    return {
        spread: reading.load(folder).results
        for spread, folder in folders.items()
        if RunFolder(folder).has_results()
    }


def lines(out: Path) -> list[str]:
    """The table, in Markdown, and the times."""
    results_of = load(out)
    at = range(SETTING.evaluate_every, ROUNDS + 1, SETTING.evaluate_every)
    rows = [
        "| clients | " + " | ".join(f"round {i}" for i in at) + " | published to 54 % |",
        "|" + "---|" * (len(at) + 2),
    ]
    for spread, results in results_of.items():
        scores = results.runs[0].rounds["test_accuracy"]
        cells = " | ".join(f"{scores[i - 1]:.3f}" for i in at if i <= len(scores))
        rows.append(f"| {spread} | {cells} | {PUBLISHED[spread]} |")
    if (out / _TIMES).exists():
        times: dict[str, Any] = json.loads((out / _TIMES).read_text())
        rows += ["", _times_text(times)]
    return rows


def _times_text(times: dict[str, Any]) -> str:
    remaining = ", ".join(
        f"{spread} {times['whole'] * (PUBLISHED[spread] - ROUNDS) / 3600:.1f} h"
        for spread in SPREADS
    )
    return (
        f"A round of {times['clients']} roles, of {times['smallest']} to {times['largest']} blocks "
        f"of 10: packed {times['packed']:.1f} s, padded to the largest (`vmapped`) "
        f"{times['padded']:.1f} s. A round at C = 0.1 takes about {times['whole']:.1f} s, so the "
        f"rest of the published rounds would take {remaining}, without evaluation. One seed, "
        f"learning rate {SETTING.client_lr:g}, not tuned."
    )


def _times(mesh: Mesh | None) -> dict[str, Any]:
    """Seconds of a compiled round of a few roles, packed and padded, and of one at C = 0.1."""
    setting = replace(SETTING, partition="natural", fraction=_TIMED).resolved()
    experiment = build.experiment(setting)
    key = jax.random.key(1)
    cohort = experiment.sampler.sample(key, 0, experiment.federation)
    blocks = -(-experiment.data.num_examples[cohort.client_ids] // 10)
    times: dict[str, Any] = {
        "clients": len(blocks),
        "smallest": int(blocks.min()),
        "largest": int(blocks.max()),
    }
    data, state = experiment.data, experiment.start(key)
    if mesh is not None:
        data, state = execution.replicate((data, state), mesh)
    for name, inner in (("packed", execution.packed()), ("padded", execution.vmapped())):
        strategy = inner if mesh is None else execution.sharded(mesh, inner)
        round_fn = jax.jit(experiment._replace(execution=strategy).round_fn)
        jax.block_until_ready(round_fn(key, state, data, cohort))
        start = time.perf_counter()
        jax.block_until_ready(round_fn(key, state, data, cohort))
        times[name] = time.perf_counter() - start
    steps = int(blocks.sum())
    clients = build.experiment(replace(SETTING, partition="natural").resolved()).data
    steps_per_round = float((-(-clients.num_examples // 10)).sum()) * 0.1
    times["whole"] = times["packed"] / steps * steps_per_round
    return times
