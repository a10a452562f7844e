"""FedNova's objective: Wang et al. 2020 (arXiv 2007.07481), section 3 and theorem 1."""

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_sim import aggregation, sampling
from fedjax_sim.algorithms import fedavg, fednova
from fedjax_sim.core.types import Array, LocalTraining, Params, PyTree
from fedjax_sim.data import FederatedData
from fedjax_sim.reproduce.claims.claim import Claim, Verdict, last_mean
from fedjax_sim.reproduce.swept import Record, SweptCell
from fedjax_sim.training.experiment import Experiment

# Client k's objective is (w - CENTRES[k])^2 / 2, and it takes STEPS[k] steps down it a round.
CENTRES, STEPS = (-1.0, 0.0, 2.0, 5.0), (1, 2, 4, 8)
OPTIMUM = sum(CENTRES) / len(CENTRES)
RATES, ROUNDS = (0.01, 0.001), 6000
ALGORITHMS = ("fedavg", "fednova")


def limit(algorithm: str, rate: float) -> float:
    """The model at which the rounds end, in closed form.

    From w a client's S steps lead to `w + c (centre - w)`, c = 1 - (1 - rate)^S, so that FedAvg
    stops where `sum_k c_k (centre_k - w) = 0`, and FedNova where the same holds of c_k / S_k.

    >>> round(limit("fedavg", 1e-9), 4), round(limit("fednova", 1e-9), 4)
    (3.1333, 1.5)
    """
    steps = np.array(STEPS, float)
    moved = 1 - (1 - rate) ** steps
    weights = moved if algorithm == "fedavg" else moved / steps
    return float(np.average(CENTRES, weights=weights))


def experiment(algorithm: str, client_lr: float) -> Experiment:
    """Clients of one example seen as often as they take steps, each weighing the same."""

    def loss_fn(w: Params, y: PyTree, key: Array | None) -> Array:
        return (w - y) ** 2 / 2

    local = LocalTraining(1, 1)
    return Experiment(
        fedavg(loss_fn, optax.sgd(client_lr), local)
        if algorithm == "fedavg"
        else fednova(loss_fn, client_lr, local),
        jnp.zeros(()),
        _data(),
        sampling.everyone(),
        ROUNDS,
        aggregation=aggregation.uniform,
        evaluate=lambda w: {"model": w},
        evaluate_every=ROUNDS,
    )


@lru_cache(maxsize=1)
def _data() -> FederatedData:
    clients = [
        np.full(steps, centre, np.float32) for steps, centre in zip(STEPS, CENTRES, strict=True)
    ]
    with jax.ensure_compile_time_eval():
        return FederatedData.from_clients(clients)


def judge(record: Record) -> Verdict:
    """Whether both end at their closed forms, and FedNova's error is of the rate's size."""
    models = {
        (name, rate): last_mean(record, "model", algorithm=name, client_lr=rate)
        for name in ALGORITHMS
        for rate in RATES
    }
    at_limits = all(abs(w - limit(*case)) < 1e-3 for case, w in models.items())
    errors = {case: abs(w - OPTIMUM) for case, w in models.items()}
    small = RATES[-1]
    texts = [
        f"{name} ends at {models[name, small]:.4f} (closed form {limit(name, small):.4f}), "
        f"{errors[name, small]:.4f} from the optimum {OPTIMUM:g}, and at rate {RATES[0]:g} "
        f"{errors[name, RATES[0]]:.4f}"
        for name in ALGORITHMS
    ]
    vanishes = errors["fednova", small] < 0.2 * errors["fednova", RATES[0]]
    stays = errors["fedavg", small] > 0.9 * errors["fedavg", RATES[0]]
    return Verdict(at_limits and vanishes and stays, "; ".join(texts))


OBJECTIVE = Claim(
    statement="FedAvg of clients with unequal local steps converges to the optimum of another "
    "objective, FedNova to that of the true one (Wang et al. 2020, FedNova, theorem 1)",
    published="on quadratics, as the rate vanishes: FedAvg at sum S_k e_k / sum S_k",
    criterion="both end within 0.001 of their closed forms, FedNova's distance from the optimum "
    "falls at least fivefold with a rate ten times smaller, and FedAvg's by a tenth at most",
    setting=f"clients with optima {CENTRES} and {STEPS} steps a round, {ROUNDS} rounds",
    cell=SweptCell(
        "claims-fednova-quadratic",
        experiment,
        {"algorithm": ALGORITHMS, "client_lr": RATES},
        ("model",),
        {"centres": CENTRES, "steps": STEPS, "rounds": ROUNDS},
        seeds=1,
    ),
    judge=judge,
    seconds=50,
)
