"""Accuracy against epsilon: `python -m benchmarks.privacy` writes benchmarks/records/PRIVACY.md.

FedAvg of a logistic regression on FedProx's IID synthetic data of K = 1,000 clients, 45 examples
each, of whom each comes with probability 0.1 in a round; three seeds. A clip and its noise are one
sweep each, of one compilation, with the noise multiplier as its axis.
"""

import statistics
from collections.abc import Callable

import jax
import numpy as np
import optax

import fedjax_sim as fs
from benchmarks import RECORDS
from benchmarks.run import machine

K, EXAMPLES, TESTS, Q, ROUNDS, DELTA, SEEDS = 1000, 45, 5, 0.1, 100, 1e-5, (0, 1, 2)
NOISES = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
CLIPS = (0.3, 1.0, 3.0)
Private = Callable[[fs.FederatedAlgorithm, float], fs.FederatedAlgorithm]


def methods() -> dict[str, Private]:
    def central(clip: float) -> Private:
        return lambda algorithm, z: fs.privacy.central(algorithm, clip, z, Q * K)

    return {f"clip {clip:g}": central(clip) for clip in CLIPS}


def federation() -> tuple[fs.FederatedData, fs.FederatedData]:
    """The first examples of each client, in train and in test, so that all weigh alike."""
    dataset = fs.datasets.synthetic_iid(jax.random.key(0), K)

    def first(examples: dict[str, np.ndarray], ids: np.ndarray, number: int) -> fs.FederatedData:
        order = np.argsort(ids, kind="stable")
        starts = np.searchsorted(ids[order], np.arange(K))
        rows = order[(starts[:, None] + np.arange(number)).ravel()]
        chosen = {name: x[rows] for name, x in examples.items()}
        return fs.FederatedData.from_arrays(chosen, np.repeat(np.arange(K), number))

    train = first(dataset.train, dataset.client_ids, EXAMPLES)
    return train, first(dataset.test, dataset.test_client_ids, TESTS)


def accuracies(
    data: fs.FederatedData, test: fs.FederatedData, private: Private, noises: tuple[float, ...]
) -> dict[float, list[float]]:
    """Noise multiplier -> the test accuracy after the last round, of each seed."""
    model = fs.models.logistic_regression((60,), 10)
    loss_fn = fs.models.cross_entropy(model.apply)
    fedavg = fs.fedavg(loss_fn, optax.sgd(1.0), fs.LocalTraining(epochs=2, batch_size=10))

    def experiment(noise: float) -> fs.Experiment:
        return fs.Experiment(
            private(fedavg, noise),
            model.init,
            data,
            fs.sampling.bernoulli(Q, capacity=180),
            ROUNDS,
            fs.aggregation.unbiased,
            evaluate=fs.evaluator(loss_fn, test),
            evaluate_every=ROUNDS,
        )

    results = fs.sweep(experiment, {"noise": list(noises)}, keys=list(SEEDS))
    measured: dict[float, list[float]] = {}
    for run in results.runs:
        accuracy = float(run.measured("test_accuracy")[-1])
        measured.setdefault(run.configuration["noise"], []).append(accuracy)
    return measured


def without(algorithm: fs.FederatedAlgorithm, noise: float) -> fs.FederatedAlgorithm:
    """FedAvg over the same fixed denominator."""
    return algorithm


def plot(epsilons: dict[float, float], measured: dict[str, dict[float, list[float]]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for name, by_noise in measured.items():
        if len(by_noise) == 1:
            (values,) = by_noise.values()
            axes.axhline(statistics.mean(values), color="0.5", ls="--", label=name)
            continue
        noises = [z for z in by_noise if z > 0]
        means = [statistics.mean(by_noise[z]) for z in noises]
        low = [mean - min(by_noise[z]) for mean, z in zip(means, noises, strict=True)]
        high = [max(by_noise[z]) - mean for mean, z in zip(means, noises, strict=True)]
        x = [epsilons[z] for z in noises]
        axes.errorbar(x, means, [low, high], marker="o", capsize=2, label=name)
    axes.set(xscale="log", xlabel=f"epsilon at delta = {DELTA:g}", ylabel="test accuracy")
    axes.legend()
    figure.savefig(RECORDS / "privacy.png", dpi=120)


def main() -> None:
    data, test = federation()
    sampler = fs.sampling.bernoulli(Q)
    epsilons = {z: fs.privacy.budget(sampler, z, ROUNDS, DELTA) for z in NOISES}
    measured = {"neither clip nor noise": accuracies(data, test, without, (0.0,))}
    for name, private in methods().items():
        measured[name] = accuracies(data, test, private, NOISES)
    names = list(measured)
    lines = [
        "# Accuracy against epsilon",
        "",
        "`python -m benchmarks.privacy`: FedAvg, logistic regression on FedProx's IID synthetic "
        f"data of K = {K:,} clients of {EXAMPLES} examples, each in a round with probability "
        f"{Q:g}, {ROUNDS} rounds, "
        f"E = 2, B = 10, rate 1; delta = {DELTA:g}. Test accuracy on all clients, the mean of "
        f"{len(SEEDS)} seeds, and their range. Epsilon by PLD, add or remove a client.",
        "",
        ", ".join(f"{k} {v}" for k, v in machine().items()) + f", jax {jax.__version__}.",
        "",
        "![Accuracy against epsilon](privacy.png)",
        "",
        f"| noise multiplier | epsilon | {' | '.join(names)} |",
        "|" + "---|" * (2 + len(names)),
    ]
    for z in NOISES:
        cells = []
        for name in names:
            values = measured[name].get(z)
            if values is None:
                cells.append("")
                continue
            spread = f"{min(values):.3f} to {max(values):.3f}"
            cells.append(f"{statistics.mean(values):.3f} ({spread})")
        lines.append(f"| {z:g} | {epsilons[z]:.2f} | {' | '.join(cells)} |")
    text = "\n".join(lines) + "\n"
    (RECORDS / "PRIVACY.md").write_text(text)
    plot(epsilons, measured)
    print(text)


if __name__ == "__main__":
    main()
