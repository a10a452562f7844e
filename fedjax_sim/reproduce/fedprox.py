"""FedProx's stragglers (figure 1) on its four synthetic federations (figure 2)."""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from fedjax_sim import grid, sampling
from fedjax_sim.algorithms import fedavg, fedprox
from fedjax_sim.core.types import Array, Cohort, LocalTraining, Params
from fedjax_sim.data import FederatedData
from fedjax_sim.report import reading
from fedjax_sim.results import Results
from fedjax_sim.results.folder import SWEEP, RunFolder
from fedjax_sim.sampling import Sampler
from fedjax_sim.sweeps import Swept, sweep
from fedjax_sim.training.evaluation import evaluate
from fedjax_sim.training.experiment import Experiment

NAME = "fedprox"
HEADING = (
    "Li et al. 2020, FedProx (arXiv 1812.06127): figure 1's stragglers on figure 2's federations"
)
COHORT, EPOCHS, BATCH, RATE, ROUNDS = 10, 20, 10, 0.01, 200
STRAGGLERS = (0.0, 0.5, 0.9)
FEDERATIONS: dict[str, dict[str, Any]] = {
    "IID": {"iid": True},
    "Synthetic(0, 0)": {"alpha": 0.0, "beta": 0.0},
    "Synthetic(0.5, 0.5)": {"alpha": 0.5, "beta": 0.5},
    "Synthetic(1, 1)": {"alpha": 1.0, "beta": 1.0},
}
# method -> (mu, whether the work of stragglers is kept)
METHODS = {"FedAvg": (0.0, False), "FedProx, mu = 0": (0.0, True), "FedProx, mu = 1": (1.0, True)}

EARLY = 25  # a round while the curves are still apart
NUM_CURVES = len(FEDERATIONS) * len(STRAGGLERS) * len(METHODS)

NOTE = (
    "Thirty devices, ten a round, E = 20, B = 10, learning rate 0.01, 200 rounds. A straggler "
    "completes 1 to 19 of its 20 epochs (drawn uniformly, as in the authors' code); FedAvg drops "
    "it, FedProx keeps its work. In the cells: loss on all training data, mean over the rounds "
    f"and after the last; test accuracy after round {EARLY} and after the last, with the sample "
    "standard deviation of the seeds, which share one federation of each kind."
)


def stragglers(share: float, keep: bool) -> Sampler:
    """Ten clients, of whom a share completes 1 to E - 1 of E epochs, as in the authors' code.

    FedAvg drops those; FedProx keeps what they did (`Cohort.work`).
    """
    slow = round(share * COHORT)

    def draw(key: Array, data: FederatedData) -> Cohort:
        clients, order, epochs = jax.random.split(key, 3)
        cohort = sampling.uniform(COHORT).sample(clients, 0, data)
        late = jax.random.permutation(order, COHORT) < slow
        epochs_done = jax.random.randint(epochs, (COHORT,), 1, EPOCHS)
        work = jnp.where(late, epochs_done / EPOCHS, 1.0)
        if keep:
            return cohort._replace(work=work)
        return cohort._replace(reports=~late)

    return sampling.custom(COHORT, draw)


def experiment(federation: str, stragglers_share: float, method: str) -> Experiment:
    """One curve of the figure."""
    from fedjax_sim import models  # imported here because flax is slow to import

    data, test = _data(federation)
    model = models.logistic_regression((60,), 10)
    loss_fn = models.cross_entropy(model.apply)
    mu, keep = METHODS[method]
    local = LocalTraining(EPOCHS, BATCH)
    algorithm = (
        fedprox(loss_fn, optax.sgd(RATE), local, mu)
        if mu
        else fedavg(loss_fn, optax.sgd(RATE), local)
    )

    def measure(params: Params) -> dict[str, Array]:
        return {
            "all_loss": evaluate(loss_fn, params, data).mean["loss"],
            "test_accuracy": evaluate(loss_fn, params, test).mean["accuracy"],
        }

    return Experiment(
        algorithm, model.init, data, stragglers(stragglers_share, keep), ROUNDS, evaluate=measure
    )


@lru_cache(maxsize=len(FEDERATIONS))
def _data(federation: str) -> tuple[FederatedData, FederatedData]:
    from fedjax_sim import datasets

    with jax.ensure_compile_time_eval():
        dataset = datasets.synthetic(jax.random.key(0), **FEDERATIONS[federation])
        data = FederatedData.from_arrays(dataset.train, dataset.client_ids)
        return data, FederatedData.from_clients([dataset.test])


def is_through(out: Path, seeds: int) -> bool:
    """Whether all curves are complete, with at least so many seeds.

    Raises:
      ValueError: if they are complete with fewer seeds, because a sweep cannot be extended.
    """
    results = load(out)
    if results is None:
        return False
    num_seeds = len({run.seed for run in results.runs})
    if num_seeds < seeds:
        raise ValueError(
            f"{out} holds curves of {num_seeds} seeds, and is not given more; got --seeds "
            f"{seeds}; name another --out"
        )
    return True


def run(out: Path, seeds: int, mesh: Mesh | None, on_progress: Callable[[Swept], None]) -> Results:
    """Runs the curves that `out` does not have yet, and returns all."""
    return sweep(
        experiment,
        grid.product(federation=[*FEDERATIONS], stragglers_share=STRAGGLERS, method=[*METHODS]),
        range(seeds),
        out=out,
        resume=RunFolder(out).holds(SWEEP),
        static=("stragglers_share",),
        mesh=mesh,
        on_progress=on_progress,
        configuration={"command": f"reproduce {NAME}"},
    )


def load(out: Path) -> Results | None:
    """All curves; None if they are not complete."""
    if not RunFolder(out).has_results():
        return None
    folder = reading.load(out)
    return folder.results if folder.summary.get("complete") else None


def curve(results: Results, federation: str, share: float, method: str, name: str) -> np.ndarray:
    """[seeds, rounds] of a metric."""
    configuration = {"federation": federation, "stragglers_share": share, "method": method}
    return np.stack(
        [run.rounds[name] for run in results.runs if run.configuration == configuration]
    )


def rows(results: Results) -> list[str]:
    """Loss on all training data and test accuracy, as lines of a Markdown table."""
    lines = [
        "| stragglers | federation | " + " | ".join(METHODS) + " |",
        "|" + "---|" * (2 + len(METHODS)),
    ]
    for share in STRAGGLERS:
        for federation in FEDERATIONS:
            cells = []
            for method in METHODS:
                loss, accuracy = (
                    curve(results, federation, share, method, name)
                    for name in ("all_loss", "test_accuracy")
                )
                last = accuracy[:, -1]
                spread = f" ± {last.std(ddof=1):.1%}" if len(last) > 1 else ""
                cells.append(
                    f"{loss.mean():.3f}, {loss[:, -1].mean():.3f}; "
                    f"{accuracy[:, EARLY - 1].mean():.1%}, {last.mean():.1%}{spread}"
                )
            lines.append(f"| {share:.0%} | {federation} | {' | '.join(cells)} |")
    return lines
