"""Estimates of the time that cells take."""

import time
from dataclasses import replace
from typing import Any

import jax
from jax.sharding import Mesh

from fedjax_sim.core.evaluate import subject_of
from fedjax_sim.reproduce.cells import Cell
from fedjax_sim.reproduce.racing import MOST_RATES
from fedjax_sim.settings import build
from fedjax_sim.settings.resolve import resolve
from fedjax_sim.settings.resolved import ResolvedSetting


def estimate(cells: list[Cell], seeds: int, mesh: Mesh | None) -> dict[str, float]:
    """Cell -> about the seconds that it takes if no run reaches its target before its end.

    It is extrapolated from the time of one client's local epoch, for each model and block size, and
    of one evaluation, to the devices of the mesh. Compilation is not counted.
    """
    paces: dict[Any, tuple[float, float]] = {}
    seconds_of = {}
    for cell in cells:
        setting = replace(cell.setting, client_lr=None).resolved()
        block = None if setting.local is None else setting.local.batch_size
        kind = (setting.dataset, setting.model, setting.algorithm, block)
        if kind not in paces:
            paces[kind] = _pace(setting)
        a_pass, an_evaluation = paces[kind]
        clients = setting.slots * (1 if setting.local is None else setting.local.epochs)
        share = 1.0 if mesh is None else 1 / min(mesh.size, setting.slots)
        # If no run reaches the target, the grid may be extended until it has MOST_RATES.
        runs = (MOST_RATES if cell.tuned else 1) + seeds - 1
        seconds_of[cell.name] = (
            runs * cell.most * (clients * a_pass * share + an_evaluation / setting.evaluate_every)
        )
    return seconds_of


def _pace(setting: ResolvedSetting) -> tuple[float, float]:
    """Seconds of one client's local epoch, and of an evaluation, on one device."""
    short = {"fraction": 1e-9, "rounds": 1} | ({} if setting.local is None else {"epochs": 1})
    short_setting = resolve(setting.values() | short)
    experiment = build.experiment(short_setting)
    key = jax.random.key(0)
    state = jax.jit(experiment.start)(key)
    cohort = jax.jit(experiment.sampler.sample)(key, 0, experiment.data)
    round_fn = jax.jit(experiment.round_fn)
    # Every problem has an evaluation, which the type does not say.
    measure: Any = jax.jit(experiment.evaluate)  # type: ignore[arg-type]  # see above
    shortest = []
    for call in (
        lambda: round_fn(key, state, experiment.data, cohort),
        lambda: measure(subject_of(experiment.evaluate, state)),
    ):
        jax.block_until_ready(call())
        times = []
        for _ in range(3):
            start = time.perf_counter()
            jax.block_until_ready(call())
            times.append(time.perf_counter() - start)
        shortest.append(min(times))
    return shortest[0], shortest[1]
