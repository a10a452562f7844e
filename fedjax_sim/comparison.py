"""Aggregation modes side by side: FedAvg by mode, participation fraction and seed."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_sim import aggregation, datasets, execution, models, partition, sampling
from fedjax_sim.algorithms import fedavg
from fedjax_sim.base import Array, FederatedAlgorithm, LocalTraining, Params
from fedjax_sim.checks import check_count, check_number
from fedjax_sim.data import FederatedData
from fedjax_sim.evaluation import evaluate
from fedjax_sim.local import check_local
from fedjax_sim.randomness import INIT, stream
from fedjax_sim.round import RoundFn, init, make_round
from fedjax_sim.simulation import History, run
from fedjax_sim.traffic import Communication, communication

_PARTITION = 11  # the key's purpose: one split for all seeds, so that they differ in training only


@dataclass(frozen=True)
class Setting:
    """What is compared. Every field is an option of `fedjax-sim compare`."""

    dataset: str = "digits"  # digits | wind
    partition: str | None = None  # iid | shards | dirichlet | natural; None: dirichlet, natural
    alpha: float | None = None  # of dirichlet; None: 0.3
    shards_per_client: int | None = None  # of shards; None: 2
    partition_seed: int = 0
    model: str | None = None  # logistic | 2nn | mlp; None: logistic for digits, mlp for wind
    clients: int | None = None  # K; None: 50, and 10 regions of wind
    fractions: tuple[float, ...] = (0.1, 0.3, 1.0)  # C; the cohort is max(1, round(C K))
    modes: tuple[str, ...] = tuple(aggregation.RULES)
    epochs: int = 5  # E
    batch_size: int | None = 10  # B; None: the full batch
    client_lr: float | None = None  # None: 0.1, and 0.02 for wind
    server_lr: float = 1.0
    rounds: int = 100
    seeds: int = 5  # seeds 0, 1, ...
    target: float | None = None  # score to reach; None: 0.9 accuracy, 0.75 R^2
    execution: str = "automatic"  # automatic | vmapped | packed | packed:LANES
    cores: int | None = None  # that share a cohort; None: all

    def resolved(self) -> "Setting":
        """The same with every None of a default filled in, checked.

        Raises:
          ValueError: naming the field, what was given and what is allowed.
        """
        _check_name("dataset", self.dataset, ("digits", "wind"))
        wind = self.dataset == "wind"
        split = self.partition or ("natural" if wind else "dirichlet")
        _check_name("partition", split, ("iid", "shards", "dirichlet", "natural"))
        if split == "natural" and not wind:
            raise ValueError("partition natural needs a dataset with natural clients (wind)")
        if split in ("shards", "dirichlet") and wind:
            raise ValueError(
                f"partition {split} splits by label, and wind has none; use natural or iid"
            )
        for name, of in (("alpha", "dirichlet"), ("shards_per_client", "shards")):
            if getattr(self, name) is not None and split != of:
                raise ValueError(f"{name} belongs to partition {of}; the partition is {split}")
        model = self.model or ("mlp" if wind else "logistic")
        allowed = ("mlp",) if wind else ("logistic", "2nn", "mlp")
        _check_name(f"model (of {self.dataset})", model, allowed)
        for mode in self.modes:
            _check_name("mode", mode, tuple(aggregation.RULES))
        for name in ("modes", "fractions"):
            values = getattr(self, name)
            if not values or len(set(values)) != len(values):
                raise ValueError(f"{name} must be at least one, each once; got {values}")
        clients = self.clients if self.clients is not None else (10 if wind else 50)
        for name, count in (("rounds", self.rounds), ("seeds", self.seeds), ("clients", clients)):
            check_count(name, count)
        for fraction in self.fractions:
            check_number("fraction", fraction, lambda c: 0 < c <= 1, "in (0, 1]")
        cohorts = [cohort_size(fraction, clients) for fraction in self.fractions]
        if len(set(cohorts)) != len(cohorts):
            raise ValueError(
                f"fractions must make cohorts of different sizes; {self.fractions} of {clients} "
                f"clients make {cohorts}"
            )
        if not 0 <= self.partition_seed < 2**32:
            raise ValueError(f"partition_seed must lie in [0, 2^32); got {self.partition_seed}")
        for name in ("client_lr", "server_lr"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), lambda x: x > 0, "positive")
        check_local(self.local)
        lanes = getattr(_strategy(self.execution), "lanes", None)
        if lanes is not None and lanes > min(cohorts):
            raise ValueError(
                f"execution packed:{lanes} needs a lane's client in every cohort; the smallest "
                f"has {min(cohorts)}"
            )
        if self.cores is not None:
            check_count("cores", self.cores)
        target = self.target if self.target is not None else (0.75 if wind else 0.9)
        check_number("target", target, lambda x: x <= 1, "at most 1")
        filled: dict[str, Any] = {
            "partition": split, "model": model, "target": target, "clients": clients
        }  # fmt: skip
        if split == "dirichlet":
            filled["alpha"] = 0.3 if self.alpha is None else self.alpha
            check_number("alpha", filled["alpha"], lambda x: x > 0, "positive")
        if split == "shards":
            given = self.shards_per_client
            filled["shards_per_client"] = 2 if given is None else given
            check_count("shards_per_client", filled["shards_per_client"])
        if self.client_lr is None:
            filled["client_lr"] = 0.02 if wind else 0.1
        return Setting(**{**asdict(self), **filled})

    @property
    def local(self) -> LocalTraining:
        """E and B."""
        return LocalTraining(epochs=self.epochs, batch_size=self.batch_size)


class Problem(NamedTuple):
    """A setting's data, model and measure."""

    data: FederatedData
    init: Callable[[Array], Params]
    loss_fn: Callable[..., Any]
    score: Callable[[Params], Array]  # on the test set; higher is better
    score_name: str  # "accuracy" or "R^2"


class Chunk(NamedTuple):
    """Some rounds of one mode and fraction, for all seeds."""

    mode: str
    fraction: float
    first: int  # the number of rounds before these
    score: np.ndarray  # [seeds, rounds]
    train_loss: np.ndarray  # [seeds, rounds]
    receivers: np.ndarray  # Int64[seeds, rounds]
    senders: np.ndarray  # Int64[seeds, rounds]
    share: np.ndarray  # [seeds, rounds], n_V / n
    nonfinite: np.ndarray  # Int64[seeds, rounds], updates that diverged


def cohort_size(fraction: float, num_clients: int) -> int:
    """m = max(1, round(C K)), McMahan et al. 2017; half is rounded up."""
    return max(1, int(fraction * num_clients + 0.5))


def build(setting: Setting) -> Problem:
    """Loads and splits the data of a resolved setting, and makes its model.

    Raises:
      ValueError: if the split is impossible for the data.
    """
    data_key, key = jax.random.split(stream(jax.random.key(setting.partition_seed), _PARTITION))
    assert setting.clients is not None
    if setting.dataset == "wind":
        dataset = datasets.wind(data_key, num_regions=setting.clients)
    else:
        dataset = datasets.digits()
    train, labels = dataset.train, dataset.train["y"]
    if setting.partition == "natural":
        client_ids = dataset.client_ids
    elif setting.partition == "iid":
        client_ids = partition.iid(key, len(labels), setting.clients)
    elif setting.partition == "shards":
        client_ids = partition.shards(
            key, labels, setting.clients, cast(int, setting.shards_per_client)
        )
    else:
        client_ids = partition.dirichlet(key, labels, setting.clients, cast(float, setting.alpha))
    data = FederatedData.from_arrays(train, client_ids, setting.clients)
    test = FederatedData.from_clients([dataset.test])
    shape = train["x"].shape[1:]

    if dataset.num_classes is None:
        model = models.mlp(shape, (32, 32), 1)
        loss_fn: Any = models.squared_error(model.apply)
        variance = float(np.var(dataset.test["y"]))

        def r_squared(params: Params) -> Array:
            return 1 - evaluate(loss_fn, params, test).mean["loss"] / variance

        return Problem(data, model.init, loss_fn, r_squared, "R^2")

    hidden: dict[str | None, tuple[int, ...]] = {"logistic": (), "mlp": (32,), "2nn": (200, 200)}
    model = models.mlp(shape, hidden[setting.model], dataset.num_classes)
    loss_fn = models.cross_entropy(model.apply)

    def accuracy(params: Params) -> Array:
        return evaluate(loss_fn, params, test).mean["accuracy"]

    return Problem(data, model.init, loss_fn, accuracy, "accuracy")


def algorithm_of(setting: Setting, problem: Problem) -> FederatedAlgorithm:
    """FedAvg as the setting says."""
    return fedavg(
        problem.loss_fn,
        optax.sgd(cast(float, setting.client_lr)),
        setting.local,
        optax.sgd(setting.server_lr),
    )


def bytes_of(setting: Setting, problem: Problem) -> Communication:
    """Bytes of one exchange."""
    params = jax.eval_shape(problem.init, jax.random.key(0))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), params)
    return communication(algorithm_of(setting, problem), zeros, problem.data)


def compare(setting: Setting, problem: Problem, chunk: int) -> Iterator[Chunk]:
    """Trains every mode and fraction with every seed, `chunk` rounds at a time.

    Each chunk is one compiled call over all seeds, one after the other, whose cohorts are
    dealt over the cores. The modes of one seed and fraction share initial model, cohorts
    and shuffles (common random numbers), so that they differ by aggregation alone.
    """
    mesh = execution.cores(setting.cores)
    strategy = execution.sharded(mesh, _strategy(setting.execution))
    data = execution.replicate(problem.data, mesh)
    keys = jax.vmap(jax.random.key)(jnp.arange(setting.seeds))
    algorithm = algorithm_of(setting, problem)

    def begin(key: Array) -> Any:
        return init(algorithm, problem.init(stream(key, INIT)), problem.data)

    start = execution.replicate(jax.jit(jax.vmap(begin))(keys), mesh)
    for fraction in setting.fractions:
        sampler = sampling.uniform(cohort_size(fraction, problem.data.num_clients))
        for mode in setting.modes:
            round_fn = make_round(algorithm, aggregation.RULES[mode], strategy)
            step = _over_seeds(round_fn, sampler, problem.score)
            state, first = start, 0
            while first < setting.rounds:
                rounds = min(chunk, setting.rounds - first)
                state, history = step(keys, state, data, rounds)
                yield _to_host(mode, fraction, first, history)
                first += rounds


def _over_seeds(
    round_fn: RoundFn, sampler: sampling.Sampler, score: Callable[[Params], Array]
) -> Callable[..., Any]:
    """`(keys, states, data, rounds) -> (states, history)`, compiled.

    Seeds have cohorts of their own: side by side under `vmap`, each would wait for the
    longest queue of all.
    """

    def advance(keys: Array, states: Any, data: FederatedData, rounds: int) -> Any:
        def one(seed: tuple[Array, Any]) -> Any:
            return run(round_fn, *seed, data, sampler, rounds, score)

        return jax.lax.map(one, (keys, states))

    return jax.jit(advance, static_argnums=3)


def rounds_to_target(scores: np.ndarray, target: float) -> float | None:
    """Rounds until the score first reaches the target; None if it never does.

    The curve is made monotone by the best value so far and interpolated linearly, as in
    McMahan et al. 2017; `scores[i]` is the score after round i + 1.

    >>> rounds_to_target(np.array([0.5, 0.4, 0.7]), 0.6)
    2.5
    """
    best = np.maximum.accumulate(np.where(np.isfinite(scores), scores, -np.inf))
    reached = np.flatnonzero(best >= target)
    if not reached.size:
        return None
    i = int(reached[0])
    if i == 0 or not np.isfinite(best[i - 1]):
        return float(i + 1)
    return float(i + (target - best[i - 1]) / (best[i] - best[i - 1]))


def _to_host(mode: str, fraction: float, first: int, history: History) -> Chunk:
    rounds = history.rounds
    return Chunk(
        mode=mode,
        fraction=fraction,
        first=first,
        score=np.asarray(history.evaluation, np.float64),
        train_loss=np.asarray(rounds.train["loss"], np.float64),
        receivers=np.asarray(rounds.receivers, np.int64),
        senders=np.asarray(rounds.senders, np.int64),
        share=np.asarray(rounds.reporting_share, np.float64),
        nonfinite=np.asarray(rounds.nonfinite, np.int64),
    )


def _strategy(text: str) -> Any:
    name, _, lanes = text.partition(":")
    if name in ("automatic", "vmapped") and not lanes:
        return getattr(execution, name)()
    if name == "packed" and (not lanes or lanes.isdecimal()):
        return execution.packed(int(lanes) if lanes else None)
    raise ValueError(f"execution must be automatic, vmapped, packed or packed:LANES; got {text!r}")


def _check_name(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {value!r}")
