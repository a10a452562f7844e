"""Accuracy against simulated time: `python -m benchmarks.asynchronous` writes ASYNCHRONOUS.md.

FedAvg that waits for its cohort, with and without a deadline, beside FedBuff and FedAsync, with as
many clients in training at a time, whose speeds are log-normal. Every method has its best rates of
a grid. All time is simulated. The page and asynchronous.png are made of asynchronous.json.
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import fedjax_sim as fs
from benchmarks import RECORDS
from benchmarks.digits import problem
from benchmarks.run import machine
from fedjax_sim.core.files import save_png
from fedjax_sim.plots import canvas
from fedjax_sim.results import Run

K, AT_A_TIME, BUFFER, DEADLINE, SPREAD, TARGET, SEEDS = 50, 10, 3, 8.0, 1.0, 0.9, (0, 1, 2)
UPDATES = 1000  # that the server takes in, of every method
CLIENT_RATES = (0.1, 0.3, 1.0)
Build = Callable[[fs.FederatedAlgorithm, fs.Clock, Any], dict[str, Any]]


class Method(NamedTuple):
    """A way to spend simulated time.

    Attributes:
      updates: that the server takes in a round, at most.
      rate: the name of its own number, beside the clients' rate, and the values that it may have.
      fields: of the experiment, made of FedAvg with its server's rate, the clock and that number.
    """

    updates: int
    rate: str
    values: Sequence[float]
    fields: Build


def waiting(deadline: float | None) -> Build:
    """Of FedAvg that waits for its cohort."""
    sampler = fs.sampling.uniform(AT_A_TIME)
    if deadline is not None:
        sampler = fs.sampling.deadline(sampler, deadline)
    return lambda algorithm, clock, own: {
        "algorithm": algorithm,
        "sampler": sampler,
        "clock": clock,
    }


def fedbuff(algorithm: fs.FederatedAlgorithm, clock: fs.Clock, own: Any) -> dict[str, Any]:
    buffered = fs.asynchronous.fedbuff(algorithm, BUFFER, AT_A_TIME, clock)
    return {"algorithm": buffered, "sampler": fs.sampling.everyone()}


def fedasync(algorithm: fs.FederatedAlgorithm, clock: fs.Clock, own: Any) -> dict[str, Any]:
    mixing = fs.asynchronous.fedasync(algorithm, AT_A_TIME, clock, alpha=own)
    return {"algorithm": mixing, "sampler": fs.sampling.everyone()}


SERVER = ("server rate", (1.0, 2.0, 4.0))
MIXING = ("mixing", (0.3, 0.6, 1.0))
METHODS = {
    "FedAvg": Method(AT_A_TIME, *SERVER, waiting(None)),
    "FedAvg, deadline": Method(AT_A_TIME, *SERVER, waiting(DEADLINE)),
    "FedBuff": Method(BUFFER, *SERVER, fedbuff),
    "FedAsync": Method(1, *MIXING, fedasync),
}


def experiments(method: Method) -> Callable[..., fs.Experiment]:
    """The experiment of a configuration."""
    data, test, model, loss_fn = problem(K)
    clock = fs.clocks.lognormal(jax.random.key(1), K, speed_spread=SPREAD)
    rounds = -(-UPDATES // method.updates)

    def experiment(client_lr: Any, own: Any) -> fs.Experiment:
        server = optax.sgd(own) if method.rate == SERVER[0] else optax.sgd(1.0)
        local = fs.LocalTraining(epochs=2, batch_size=10)
        fields = method.fields(fs.fedavg(loss_fn, optax.sgd(client_lr), local, server), clock, own)
        return fs.Experiment(
            params=model.init,
            data=data,
            num_rounds=rounds,
            aggregation=fs.aggregation.uniform,
            evaluate=fs.evaluator(loss_fn, test),
            evaluate_every=max(1, 10 // method.updates),
            **fields,
        )

    return experiment


def measured() -> list[dict[str, Any]]:
    """For each method and configuration its times to the target, and of the best one its curves."""
    rows: list[dict[str, Any]] = []
    for name, method in METHODS.items():
        grid = {"client_lr": CLIENT_RATES, "own": method.values}
        results = fs.sweep(experiments(method), grid, SEEDS)
        curves: list[list[dict[str, list[float]]]] = []
        of_method: list[dict[str, Any]] = []
        for values in results.mean("test_accuracy"):
            runs = [run for run in results.runs if run.configuration == values.configuration]
            curves.append([curve_of(run) for run in runs])
            times = [seconds_to_target(curve) for curve in curves[-1]]
            of_method.append({"method": name, **values.configuration, "seconds": times})
        best = min(range(len(of_method)), key=lambda place: mean_time(of_method[place]))
        of_method[best]["curves"] = curves[best]
        rows += of_method
    return rows


def curve_of(run: Run) -> dict[str, list[float]]:
    """The simulated seconds and the accuracies of a run's evaluations."""
    shown = run.has("test_accuracy")
    return {
        "seconds": np.round(run.measured("seconds")[shown], 2).tolist(),
        "accuracy": np.round(run.measured("test_accuracy"), 4).tolist(),
    }


def seconds_to_target(curve: Mapping[str, Sequence[float]]) -> float | None:
    """Simulated seconds until an evaluation reaches the target; None if none does."""
    reached = np.flatnonzero(np.asarray(curve["accuracy"]) >= TARGET)
    return float(curve["seconds"][reached[0]]) if len(reached) else None


def mean_time(row: Mapping[str, Any]) -> float:
    """The mean over seeds; infinite where one does not reach the target."""
    return float(np.mean([np.inf if x is None else x for x in row["seconds"]]))


def best_of_each(rows: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Method -> the row whose seeds take the least time in the mean, with its curves."""
    return {row["method"]: row for row in rows if "curves" in row}


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line a method."""
    lines = [
        "| method | updates a step | client rate | server rate or mixing | simulated seconds to "
        f"{100 * TARGET:.0f} % | accuracy at the end, % |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in best_of_each(rows).items():
        times = row["seconds"]
        ends = [100 * curve["accuracy"][-1] for curve in row["curves"]]
        lines.append(
            f"| {name} | {METHODS[name].updates} | {row['client_lr']:g} | {row['own']:g} | "
            f"{mean_time(row):.0f} ({min(times):.0f} to {max(times):.0f}) | {np.mean(ends):.1f} |"
        )
    return lines


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def page(record: Mapping[str, Any]) -> str:
    """The text of ASYNCHRONOUS.md."""
    lines = [
        "# Accuracy against simulated time",
        "",
        "`python -m benchmarks.asynchronous` (`--draw` makes this page and its picture again from "
        f"asynchronous.json): an MLP with 32 hidden units on the digits, K = {K} clients of a "
        f"Dirichlet split with alpha = 1, E = 2, B = 10, plain means. A client's local step takes "
        f"log-normal seconds, 1 in the median, with a standard deviation of {SPREAD:g} of the "
        f"logarithm; what is sent takes none. {AT_A_TIME} clients train at a time; FedBuff steps "
        f"on {BUFFER} arrivals, the deadline is {DEADLINE:g} s, staleness weighs (1 + s)^-0.5. "
        f"Each method takes {UPDATES} updates in, and has the best of "
        f"client rates {_listed(CLIENT_RATES)} and of server rates {_listed(SERVER[1])}, or mixing "
        f"weights {_listed(MIXING[1])}, by the mean time of "
        f"{len(SEEDS)} seeds to {100 * TARGET:.0f} % test accuracy; in brackets their range.",
        "",
        record["machine"] + ".",
        "",
        *table(record["rows"]),
        "",
        "![accuracy against simulated time](asynchronous.png)",
    ]
    return "\n".join([*lines, ""])


def figure(rows: Sequence[Mapping[str, Any]]) -> Any:
    """A matplotlib Figure: a line for each seed of each method's best rates."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    ax = figure.subplots()
    for place, (name, row) in enumerate(best_of_each(rows).items()):
        for number, curve in enumerate(row["curves"]):
            accuracy = 100 * np.maximum.accumulate(curve["accuracy"])
            label = name if number == 0 else None
            ax.plot(curve["seconds"], accuracy, color=f"C{place}", lw=1.2, label=label)
    ax.axhline(100 * TARGET, color=canvas.INK, lw=0.8, ls=":")
    ax.set(
        xscale="log",
        xlabel="simulated seconds",
        ylabel="best test accuracy so far, %",
        ylim=(0, 100),
    )
    ax.legend(loc="lower right")
    return figure


def write(record: Mapping[str, Any], folder: Path) -> None:
    """Writes the page and the picture of a record."""
    (folder / "ASYNCHRONOUS.md").write_text(page(record), encoding="utf-8")
    save_png(figure(record["rows"]), folder / "asynchronous.png", record["rows"], 110)


def main() -> None:
    numbers = RECORDS / "asynchronous.json"
    if "--draw" not in sys.argv:
        words = ", ".join(f"{k} {v}" for k, v in machine().items())
        record = {"machine": f"{words}, jax {jax.__version__}", "rows": measured()}
        numbers.write_text(json.dumps(record) + "\n")
    record = json.loads(numbers.read_text())
    write(record, RECORDS)
    print(page(record))


if __name__ == "__main__":
    main()
