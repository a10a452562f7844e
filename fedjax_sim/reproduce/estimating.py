"""Estimates of the time that cells take."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
from jax.sharding import Mesh

from fedjax_sim.core.evaluate import subject_of
from fedjax_sim.reproduce.accuracies import AccuracyCell
from fedjax_sim.reproduce.cells import Cell
from fedjax_sim.reproduce.racing import MOST_RATES, dealt_over
from fedjax_sim.settings import build
from fedjax_sim.settings.resolve import resolve
from fedjax_sim.settings.resolved import ResolvedSetting
from fedjax_sim.settings.setting import Setting
from fedjax_sim.training.experiment import Experiment

_LONG_SECONDS = 0.5


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
        kind = (setting.dataset, setting.validation, setting.model, setting.algorithm, block)
        if kind not in paces:
            paces[kind] = _pace_of_client(setting)
        a_pass, an_evaluation = paces[kind]
        clients = setting.slots * (1 if setting.local is None else setting.local.epochs)
        dealt = dealt_over(setting, mesh)
        devices = 1 if dealt is None else dealt.size
        share = 1 / min(devices, setting.slots)
        # If no run reaches the target, the grid may be extended until it has MOST_RATES.
        runs = (MOST_RATES if cell.tuned else 1) + seeds - 1
        seconds_of[cell.name] = (
            runs
            * cell.most
            * (clients * a_pass * share + an_evaluation / devices / setting.evaluate_every)
        )
    return seconds_of


def estimate_swept(
    cells: Sequence[AccuracyCell], seeds: int, mesh: Mesh | None
) -> dict[str, float]:
    """Cell -> about the seconds that its sweep takes, all methods and seeds.

    It is extrapolated from the time of one client's local epoch by its examples, for each data
    set, model and method. Compilation is not counted.
    """
    devices = 1 if mesh is None else mesh.size
    paces: dict[Any, tuple[float, float]] = {}
    seconds_of = {}
    for each in cells:
        seconds = 0.0
        for method, setting in each.settings.items():
            resolved = setting.resolved()
            kind = (each.experiment_of, resolved.dataset, resolved.model, method)
            if kind not in paces:
                paces[kind] = _pace_of_example(resolved, each.experiment_of)
            an_example, an_evaluation = paces[kind]
            local = resolved.local
            assert local is not None  # every method here trains for epochs
            examples = int(build.problem(resolved).data.num_examples.sum()) * local.epochs
            evaluations = math.ceil(resolved.rounds / resolved.evaluate_every)
            seconds += resolved.rounds * examples * an_example + evaluations * an_evaluation
        seconds_of[each.cell.name] = seconds * math.ceil((each.cell.seeds or seeds) / devices)
    return seconds_of


def _pace_of_example(
    resolved: ResolvedSetting, experiment_of: Callable[[Setting], Experiment]
) -> tuple[float, float]:
    """Seconds of one example in one epoch, and of an evaluation, on one device."""
    # An algorithm with a number of epochs of its own needs them; of others one is enough.
    epochs = resolved.choices.algorithm.defaults.get("epochs", 1)
    short = {"sampler": "uniform", "fraction": 1e-9, "rounds": 1, "epochs": epochs}
    experiment = experiment_of(Setting.of(resolved.values() | short))
    seconds, an_evaluation, examples = _pace(experiment)
    return seconds / (examples * epochs), an_evaluation


def _pace_of_client(setting: ResolvedSetting) -> tuple[float, float]:
    """Seconds of one client's local epoch, and of an evaluation, on one device."""
    short = {"fraction": 1e-9, "rounds": 1} | ({} if setting.local is None else {"epochs": 1})
    return _pace(build.experiment(resolve(setting.values() | short)))[:2]


def _pace(experiment: Experiment) -> tuple[float, float, int]:
    """Seconds of a round and of an evaluation, and the examples of the round's cohort."""
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
        times: list[float] = []
        # What takes long is timed once, because it varies less.
        while len(times) < 3 and sum(times) < _LONG_SECONDS:
            start = time.perf_counter()
            jax.block_until_ready(call())
            times.append(time.perf_counter() - start)
        shortest.append(min(times))
    examples = int(experiment.federation.num_examples[cohort.client_ids].sum())
    return shortest[0], shortest[1], examples
