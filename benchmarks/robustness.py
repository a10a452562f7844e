"""Attacks against rules: `python -m benchmarks.robustness` writes records/ROBUSTNESS.md.

One sweep over attacks, rules, shares of malicious clients and seeds on the digits. The attack, by
its number, and the share are traced, so that a rule is one program, which is counted. The page and
robustness.png are made of robustness.json.
"""

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fedjax_sim as fs
from benchmarks import RECORDS
from benchmarks.digits import problem
from benchmarks.run import machine
from fedjax_sim.core.files import save_png
from fedjax_sim.plots import canvas

K, ROUNDS, SEEDS, RATE = 20, 20, (0, 1, 2), 0.1
SHARES = (0.1, 0.2, 0.3)
F = round(SHARES[-1] * K)  # as many malicious clients as there are at most
NOBODY, MEAN = "none", "mean"
ATTACKS: dict[str, Any] = {
    NOBODY: lambda updates, malicious, counted, key: updates,
    "sign flip": fs.attacks.sign_flip(4.0),
    "Gaussian": fs.attacks.gaussian(1.0),
    "ALIE": fs.attacks.alie(1.5),
    "IPM": fs.attacks.ipm(0.5),
}
RULES: dict[str, Any] = {
    MEAN: fs.aggregation.selected,
    "median": fs.aggregation.median(),
    "trimmed mean": fs.aggregation.trimmed_mean(SHARES[-1]),
    "multi-Krum": fs.aggregation.multi_krum(F, K - F),
    "geometric median": fs.aggregation.geometric_median(8),
}
ROUNDS_PROGRAM = "jit(share)"  # XLA's name of the function that does the rounds of a batch
Scores = Mapping[tuple[str, str, float], Sequence[float]]  # of (rule, attack, share), by seed


def grid() -> fs.grid.Grid:
    """Every rule, with every attack by every share, and with nobody's."""
    attacks = fs.grid.numbered(ATTACKS)
    of_nobody = fs.grid.product(attack=attacks[:1], share=[0.0])
    return fs.grid.product(rule=list(RULES)) * (
        of_nobody + fs.grid.product(attack=attacks[1:], share=SHARES)
    )


def experiments() -> Callable[..., fs.Experiment]:
    """The experiment of a configuration, on data that are loaded and split once."""
    data, test, model, loss_fn = problem(K)
    fedavg = fs.fedavg(loss_fn, optax.sgd(RATE), fs.LocalTraining(epochs=2, batch_size=10))

    def experiment(rule: str, attack: Any, share: Any) -> fs.Experiment:
        return fs.Experiment(
            fedavg,
            model.init,
            data,
            fs.sampling.everyone(),
            ROUNDS,
            RULES[rule],
            evaluate=fs.evaluator(loss_fn, test),
            evaluate_every=ROUNDS,
            attack=fs.attacks.chosen(attack, *ATTACKS.values()),
            # One set of clients for all seeds; a smaller share's are among a larger one's. Where
            # nobody attacks they send what they trained.
            malicious=fs.attacks.draw_malicious(
                jax.random.key(1), K, jnp.maximum(share, SHARES[0])
            ),
        )

    return experiment


@contextmanager
def compilations() -> Iterator[list[str]]:
    """The names of the functions that XLA compiles, as it does."""
    names: list[str] = []

    def listen(event: str, seconds: float, **facts: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            names.append(str(facts.get("fun_name")))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield names
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def measured() -> tuple[Scores, int]:
    """The accuracies after the last round, and how often a program of rounds was compiled."""
    with compilations() as names:
        results = fs.sweep(experiments(), grid(), SEEDS)
    scores: dict[tuple[str, str, float], list[float]] = {}
    for run in results.runs:
        hyper = run.configuration
        place = hyper["rule"], hyper["attack"], float(hyper["share"])
        scores.setdefault(place, []).append(round(float(run.measured("test_accuracy")[-1]), 5))
    return scores, names.count(ROUNDS_PROGRAM)


def of_share(scores: Scores, share: float) -> dict[str, list[tuple[float, float]]]:
    """Attack -> mean and sample standard deviation under each rule; the honest runs come first."""
    rows: dict[str, list[tuple[float, float]]] = {}
    for attack in ATTACKS:
        values = [scores[rule, attack, 0.0 if attack == NOBODY else share] for rule in RULES]
        rows[attack] = [(float(np.mean(x)), float(np.std(x, ddof=1))) for x in values]
    return rows


def worst(scores: Scores, share: float) -> dict[str, tuple[float, str]]:
    """Rule -> the mean accuracy under the attack that harms it most, and that attack."""
    attacks = {name: row for name, row in of_share(scores, share).items() if name != NOBODY}
    return {
        rule: min((row[i][0], name) for name, row in attacks.items())
        for i, rule in enumerate(RULES)
    }


def table(scores: Scores, share: float) -> list[str]:
    """Accuracies in per cent, a row an attack and a column a rule."""
    lines = [
        f"| {100 * share:.0f} % malicious | {' | '.join(RULES)} |",
        "|---" * (1 + len(RULES)) + "|",
    ]
    for attack, row in of_share(scores, share).items():
        cells = [f"{100 * mean:.1f} ± {100 * deviation:.1f}" for mean, deviation in row]
        lines.append(f"| {attack} | {' | '.join(cells)} |")
    lowest = [f"{100 * accuracy:.1f} ({name})" for accuracy, name in worst(scores, share).values()]
    return [*lines, f"| the worst of these | {' | '.join(lowest)} |"]


def best_and_worst(scores: Scores, share: float) -> str:
    """The rules by the attack that harms each most, in words."""
    by_worst = worst(scores, share)
    (high, high_attack), (low, low_attack) = max(by_worst.values()), min(by_worst.values())
    best, least = (
        next(rule for rule, value in by_worst.items() if value == end)
        for end in ((high, high_attack), (low, low_attack))
    )
    return (
        f"By the attack that harms it most the best rule is the {best} ({100 * high:.1f} %, "
        f"{high_attack}), the worst the {least} ({100 * low:.1f} %, {low_attack})."
    )


def page(record: Mapping[str, Any]) -> str:
    """The text of ROBUSTNESS.md."""
    scores = scores_of(record)
    lines = [
        "# Attacks against rules",
        "",
        "`python -m benchmarks.robustness` (`--draw` makes this page and its picture again from "
        f"robustness.json): FedAvg of an MLP with 32 hidden units on the digits, K = {K} clients "
        "of a Dirichlet split with alpha = 1, all of them in every round, E = 2, B = 10, rate "
        f"{RATE:g}; test accuracy in per cent after {ROUNDS} rounds, mean ± sample standard "
        f"deviation of {len(SEEDS)} seeds. Sign flip: 4 times; Gaussian: standard deviation 1; "
        "ALIE: z = 1.5 beside the malicious clients' own mean; IPM: eps = 0.5. The trimmed mean "
        f"trims {SHARES[-1]:g} at each end, multi-Krum has f = {F} and keeps {K - F}, the "
        "geometric median takes 8 steps. Who is malicious is drawn once.",
        "",
        f"One sweep of {record['num_runs']} runs; attack and share are traced, and the rounds of "
        f"the {len(RULES)} rules are {record['compilations']} compiled programs.",
        "",
        record["machine"] + ".",
    ]
    for share in SHARES:
        lines += ["", *table(scores, share), "", best_and_worst(scores, share)]
    return "\n".join([*lines, "", "![accuracy by attack and rule](robustness.png)", ""])


def figure(scores: Scores) -> Any:
    """A matplotlib Figure: a map of attacks and rules for each share, on one scale."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.7), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(SHARES), sharey=True)
    for ax, share in zip(axes, SHARES, strict=True):
        rows = of_share(scores, share)
        means = np.array([[100 * mean for mean, _ in row] for row in rows.values()])
        image = ax.imshow(means, cmap=canvas.shades(), vmin=0, vmax=100, aspect="auto")
        for (row, column), mean in np.ndenumerate(means):
            ink = "#ffffff" if mean > 50 else canvas.INK
            ax.text(column, row, f"{mean:.1f}", ha="center", va="center", color=ink)
        ax.set_xticks(
            range(len(RULES)), [rule.replace(" ", "\n").replace("-", "-\n") for rule in RULES]
        )
        ax.set_yticks(range(len(rows)), list(rows))
        ax.tick_params(length=0, labelsize=9)
        ax.spines[:].set_visible(False)
        ax.set_title(f"{100 * share:.0f} % malicious", fontsize=11)
    figure.colorbar(image, ax=axes, label="test accuracy, %", pad=0.01)
    return figure


def scores_of(record: Mapping[str, Any]) -> Scores:
    """The accuracies that robustness.json has."""
    return {(x["rule"], x["attack"], x["share"]): x["accuracies"] for x in record["scores"]}


def write(record: Mapping[str, Any], folder: Path) -> None:
    """Writes the page and the picture of a record."""
    (folder / "ROBUSTNESS.md").write_text(page(record), encoding="utf-8")
    save_png(figure(scores_of(record)), folder / "robustness.png", record["scores"], 110)


def main() -> None:
    numbers = RECORDS / "robustness.json"
    if "--draw" not in sys.argv:
        scores, num_programs = measured()
        # A failure here would mean that an attack or a share had become part of the program.
        assert num_programs == len(RULES), num_programs
        record = {
            "machine": ", ".join(f"{k} {v}" for k, v in machine().items())
            + f", jax {jax.__version__}",
            "num_runs": sum(map(len, scores.values())),
            "compilations": num_programs,
            "scores": [
                {"rule": rule, "attack": attack, "share": share, "accuracies": accuracies}
                for (rule, attack, share), accuracies in scores.items()
            ],
        }
        numbers.write_text(json.dumps(record, indent=1) + "\n")
    record = json.loads(numbers.read_text())
    write(record, RECORDS)
    print(page(record))


if __name__ == "__main__":
    main()
