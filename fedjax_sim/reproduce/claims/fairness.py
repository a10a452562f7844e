"""q-FedAvg's worst tenth: Li et al. 2020, "Fair Resource Allocation" (arXiv 1905.10497)."""

from functools import lru_cache

import jax

from fedjax_sim import aggregation, sampling
from fedjax_sim.algorithms import qfedavg
from fedjax_sim.core.types import Array, LocalTraining, Params
from fedjax_sim.data import FederatedData
from fedjax_sim.reproduce.claims.claim import Claim, Verdict, last_mean
from fedjax_sim.reproduce.swept import Record, SweptCell
from fedjax_sim.training.evaluation import client_statistics, evaluate
from fedjax_sim.training.experiment import Experiment

CLIENTS, COHORT, RATE, ROUNDS = 30, 10, 0.1, 1000
EVERY, LAST = 100, 5  # rounds between measurements, and how many of them are averaged
POWERS = (0.0, 1.0)


def experiment(q: float) -> Experiment:
    """q-FedAvg on Synthetic(1, 1), each client tested on its own test examples."""
    from fedjax_sim import models  # imported here because flax is slow to import

    train, test = _data()
    model = models.logistic_regression((60,), 10)
    loss_fn = models.cross_entropy(model.apply)

    def measure(params: Params) -> dict[str, Array]:
        accuracy = evaluate(loss_fn, params, test).clients["accuracy"]
        spread = client_statistics(accuracy, test.client_weights, test.num_examples > 0)
        return {"mean": spread.mean, "worst_tenth": spread.worst_tenth, "std": spread.std}

    return Experiment(
        qfedavg(loss_fn, RATE, LocalTraining(1, 10), q),
        model.init,
        train,
        sampling.uniform(COHORT),
        ROUNDS,
        aggregation=aggregation.uniform,
        evaluate=measure,
        evaluate_every=EVERY,
    )


@lru_cache(maxsize=1)
def _data() -> tuple[FederatedData, FederatedData]:
    from fedjax_sim import datasets

    with jax.ensure_compile_time_eval():
        dataset = datasets.synthetic(jax.random.key(0), 1.0, 1.0, CLIENTS)
        ids, test_ids = dataset.client_ids, dataset.test_client_ids
        assert ids is not None
        assert test_ids is not None
        return (
            FederatedData.from_arrays(dataset.train, ids, CLIENTS),
            FederatedData.from_arrays(dataset.test, test_ids, CLIENTS),
        )


def judge(record: Record) -> Verdict:
    """Whether q = 1 lifts the worst tenth by more than the mean loses."""
    worst, mean, std = (
        [last_mean(record, name, LAST, q=q) for q in POWERS]
        for name in ("worst_tenth", "mean", "std")
    )
    gain, loss = worst[1] - worst[0], mean[0] - mean[1]
    ours = (
        f"worst tenth {worst[0]:.1%} to {worst[1]:.1%}, mean {mean[0]:.1%} to {mean[1]:.1%}, "
        f"deviation over clients {std[0]:.1%} to {std[1]:.1%}"
    )
    return Verdict(gain > max(loss, 0.0), ours)


FAIRNESS = Claim(
    statement="q-FedAvg with q = 1 lifts the worst tenth of the clients at little cost to the mean "
    "(Li et al. 2020, q-FFL, table 1)",
    published="Synthetic(1, 1), q = 0 to 1: worst tenth 18.8 % to 31.1 %, mean 80.8 % to 79.0 %",
    criterion="the worst tenth gains, and gains more than the mean over clients loses",
    setting=f"Synthetic(1, 1) of {CLIENTS} clients, ten a round and each weighing the same, E = 1, "
    f"B = 10, rate {RATE:g}; each client on its own test examples, mean of five seeds and of the "
    f"last {LAST} of {ROUNDS // EVERY} measurements in {ROUNDS} rounds",
    cell=SweptCell(
        "claims-qfedavg-worst-tenth",
        experiment,
        {"q": POWERS},
        ("mean", "worst_tenth", "std"),
        {
            "clients": CLIENTS,
            "cohort": COHORT,
            "sampler": "uniform",
            "rate": RATE,
            "rounds": ROUNDS,
        },
        seeds=5,
    ),
    judge=judge,
    seconds=70,
)
