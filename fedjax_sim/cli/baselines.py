"""`fedjax-sim run --baselines`: what no federation, and no averaging, would reach."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_sim import baselines
from fedjax_sim.cli import files, folder
from fedjax_sim.cli.show import run_progress
from fedjax_sim.core.checks import check_known
from fedjax_sim.core.types import FederatedState
from fedjax_sim.host.simulate import simulate
from fedjax_sim.host.simulation import Simulation
from fedjax_sim.results import Results, Scalar
from fedjax_sim.results.columns import BYTES
from fedjax_sim.results.folder import BASELINES, CONFIGURATION, RUN, RunFolder
from fedjax_sim.settings import build, stores
from fedjax_sim.settings.resolved import ResolvedSetting
from fedjax_sim.training.experiment import Experiment

_EXPERIMENTS = {name: getattr(baselines, name) for name in BASELINES}


def train(
    name: str, resolved: ResolvedSetting, experiment: Experiment, out: Path, resume: bool
) -> tuple[str, bool]:
    """One baseline of a run, in a results folder of its own below it.

    Args:
      experiment: the run's, of as many rounds as it had until its target.

    Returns:
      A line about its result, and whether it ran to its end.
    """
    held = experiment._replace(data=stores.in_memory(experiment.data))
    baseline, below = _EXPERIMENTS[name](held), out / name
    configuration = {**resolved.values(), "baseline": name}
    with folder.saying_what_is_saved(below):
        with run_progress(baseline.num_rounds, resolved.score) as tell:
            simulation = simulate(
                baseline,
                resolved.seed,
                out=below,
                resume=resume,
                on_progress=tell,
                configuration={**resolved.values_without_target(), "baseline": name},
            )
        if simulation.status == "interrupted":
            return f"{name} interrupted, and what was computed is saved", False
        (run,) = simulation.results(seed=resolved.seed).runs
        rounds = {k: x for k, x in run.rounds.items() if k not in BYTES}  # nothing is sent
        values = _of_own_models(resolved, simulation) if name == "local_only" else run.values
        results = Results((run._replace(rounds=rounds, values=values),))
        results.save(below, summary(configuration, resolved, simulation))
    row = results.runs[0].row()
    scores = ", ".join(
        f"{score} {row[score]:.4f}" if isinstance(row[score], float) else f"{score} not known"
        for score in dict.fromkeys((resolved.score, resolved.test_score))
    )
    means = ""
    if name == "local_only":
        means = ", mean of the clients' own models"
        clients = experiment.federation.num_clients
        if never := clients - int(values["trained_clients"] or 0):
            means += f" ({never} of {clients} never trained, and have the first one)"
    return f"{name}: {scores}{means}", True


def _of_own_models(resolved: ResolvedSetting, simulation: Simulation) -> dict[str, Scalar]:
    """Scores of the clients' own last models, on the test set and on their own examples."""
    parts = build.problem(resolved)
    statistics = baselines.evaluate_local(
        parts.loss_fn,
        simulation.state,
        parts.test,
        stores.in_memory(parts.data) if resolved.per_client else None,
    ).statistics
    if parts.validation is not None:
        held_out = baselines.evaluate_local(parts.loss_fn, simulation.state, parts.validation)
        statistics |= {
            name.replace("test_", "validation_", 1): x for name, x in held_out.statistics.items()
        }
    values: dict[str, Scalar] = {"trained_clients": _trained(simulation.state)}
    for name, of_clients in statistics.items():
        values |= {f"{name}_{k}": float(x) for k, x in of_clients._asdict().items()}
    means = {
        name: float(x.mean) for name, x in statistics.items() if not name.startswith("clients_")
    }
    r2 = {f"{k}_r2": 1 - means[f"{k}_loss"] / x for k, x in parts.variances.items()}
    return {**values, **means, **r2}


def _trained(state: FederatedState) -> int:
    """Clients whose model is no longer the first one."""
    moved = [
        (leaf != first[None]).reshape(len(leaf), -1).any(axis=1)
        for leaf, first in zip(
            jax.tree.leaves(baselines.local_models(state)),
            jax.tree.leaves(state.params),
            strict=True,
        )
    ]
    return int(jnp.any(jnp.stack(moved), axis=0).sum())


def summary(
    configuration: Mapping[str, Any], resolved: ResolvedSetting, simulation: Simulation
) -> dict[str, Any]:
    """The contents of summary.json, of a run and of a baseline alike."""
    return {
        "kind": "run",
        "configuration": configuration,
        "score": resolved.score,
        "status": simulation.status,
    }


def saved_names(out: Path) -> Any:
    """Names of the baselines of the run that is saved in `out`."""
    path = out / CONFIGURATION
    return files.read(path).get("baselines", []) if path.exists() else []


def names_to_train(*several: Any) -> list[str]:
    """The baselines to train: those of the run that goes on, of the file and of the options.

    Raises:
      ValueError: for what is no list of their names, or a name twice.
    """
    for names in several:
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"baselines must be a list of names; got {names!r}")
        for name in names:
            check_known(name, BASELINES, "baseline")
        if len(set(names)) != len(names):
            raise ValueError(f"baselines must be named once each; got {' '.join(names)}")
    return list(dict.fromkeys(name for names in several for name in names))


def check(
    names: list[str], resolved: ResolvedSetting, out: RunFolder, *, resume: bool, overwrite: bool
) -> None:
    """Refuses settings that a baseline cannot be trained with, and folders that have results.

    Raises:
      ValueError: saying which.
    """
    for below in map(out.baseline, names):
        if overwrite and below.held() and not below.is_baseline():
            raise ValueError(
                f"out {below.path} holds a run of its own and no baseline, and is not replaced; "
                "name another --out"
            )
        below.check(RUN, resume, overwrite)
    if "local_only" in names and build.sampler(resolved).with_replacement:
        raise ValueError(f"local_only needs a sampler without replacement; got {resolved.sampler}")
