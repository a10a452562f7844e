"""The experiment of a setting: its data, model, algorithm and measures."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from fedjax_sim import aggregation, execution, partition, sampling
from fedjax_sim.algorithms import fedavg, fedprox, fedsgd, scaffold
from fedjax_sim.algorithms.descent import Optimizer
from fedjax_sim.algorithms.server_optimizers import ADAPTIVE
from fedjax_sim.core.randomness import stream
from fedjax_sim.core.types import Array, FederatedAlgorithm, Params
from fedjax_sim.data import FederatedData
from fedjax_sim.sampling import Sampler
from fedjax_sim.settings.setting import OF_DATA, Setting, strategy
from fedjax_sim.training.evaluation import evaluator
from fedjax_sim.training.experiment import Experiment

# Purposes of the key: one split for all seeds, so that they differ in training only.
_PARTITION, _VALIDATION = 11, 12
_HIDDEN: dict[str, tuple[int, ...]] = {"logistic": (), "mlp": (32,), "2nn": (200, 200)}


class Problem(NamedTuple):
    """A setting's data and model."""

    data: FederatedData
    test: FederatedData
    init: Callable[[Array], Params]
    loss_fn: Callable[..., Any]
    variances: dict[str, float]  # of a regression's targets in test and validation
    validation: FederatedData | None = None


class Split(NamedTuple):
    """A data set and who has which of its training examples, none of which is held out."""

    dataset: Any  # fedjax_sim.datasets.Dataset
    client_ids: np.ndarray  # Int[N]


def split(setting: Setting) -> Split:
    """Loads and splits the data of a resolved setting.

    Raises:
      ValueError: if the split is impossible for the data.
    """
    from fedjax_sim import datasets  # here: --help is not to wait for it

    clients: Any = setting.clients
    data_key, key = jax.random.split(stream(jax.random.key(setting.partition_seed), _PARTITION))
    if setting.dataset == "wind":
        found = datasets.wind(data_key, num_regions=clients)
    elif not setting.dataset.startswith("synthetic"):
        found = getattr(datasets, setting.dataset)()
    else:
        alpha: Any = setting.synthetic_alpha or 0.0
        beta: Any = setting.synthetic_beta or 0.0
        iid = setting.dataset == "synthetic_iid"
        found = datasets.synthetic(data_key, alpha, beta, clients, iid)
    client_ids = _client_ids(key, setting, found, clients)
    if setting.validation is None:
        return Split(found, client_ids)
    key = stream(jax.random.key(setting.partition_seed), _VALIDATION)
    held = partition.holdout(key, client_ids, setting.validation)
    train, validation = ({k: x[rows] for k, x in found.train.items()} for rows in (~held, held))
    return Split(found._replace(train=train, validation=validation), client_ids[~held])


def _client_ids(key: Array, setting: Setting, found: Any, clients: int) -> np.ndarray:
    labels, given = found.train["y"], setting
    fewest = 1 if given.min_examples is None else given.min_examples
    if given.partition == "natural":
        return found.client_ids
    if given.partition == "iid":
        return partition.iid(key, len(labels), clients)
    if given.partition == "quantity":
        skew: Any = given.skew
        parameter: Any = given.skew_parameter
        return partition.quantity(key, len(labels), clients, skew, parameter, fewest)
    if given.partition == "shards":
        count: Any = given.shards_per_client
        return partition.shards(key, labels, clients, count)
    if given.partition == "labels":
        count = given.classes_per_client
        return partition.labels(key, labels, clients, count)
    alpha: Any = given.alpha
    return partition.dirichlet(key, labels, clients, alpha, fewest)


def problem(setting: Setting) -> Problem:
    """Loads and splits the data of a resolved setting, and makes its model; once for each split.

    Raises:
      ValueError: if the split is impossible for the data.
      FileNotFoundError: if the data are yet to be fetched: how.
    """
    return _problem(Setting(**{name: getattr(setting, name) for name in (*OF_DATA, "model")}))


@lru_cache(maxsize=8)  # each holds the data set, in its clients' order
def _problem(setting: Setting) -> Problem:
    from fedjax_sim import models  # here: flax is slow to import, and --help is not to be

    # A sweep may ask for it inside a trace.
    with jax.ensure_compile_time_eval():
        found, client_ids = split(setting)
        data = FederatedData.from_arrays(found.train, client_ids, setting.clients)
        test = FederatedData.from_clients([found.test])
        held_out = found.validation
        validation = None if held_out is None else FederatedData.from_clients([held_out])
    model = _model(setting.model or "mlp", found)
    if found.num_classes is None:
        loss_fn = models.squared_error(model.apply)
        parts = {"validation": found.validation, "test": found.test}
        variances = {k: float(np.var(part["y"])) for k, part in parts.items() if part is not None}
        return Problem(data, test, model.init, loss_fn, variances, validation)
    return Problem(data, test, model.init, models.cross_entropy(model.apply), {}, validation)


def _model(name: str, found: Any) -> Any:
    """The model of that name for the data set."""
    from fedjax_sim import models

    shape, classes = found.train["x"].shape[1:], found.num_classes
    if classes is None:
        return models.mlp(shape, (32, 32), 1)
    if name in _HIDDEN:
        return models.mlp(shape, _HIDDEN[name], classes)
    if name in ("character_lstm", "transformer"):
        return getattr(models, name)(classes, length=shape[0])
    grey = len(shape) == 2
    made = getattr(models, name)((*shape, 1) if grey else shape, classes)
    if not grey:
        return made
    return made._replace(apply=lambda params, x: made.apply(params, x[..., None]))


def experiment(setting: Setting, mesh: Mesh | None = None) -> Experiment:
    """What a resolved setting describes; its hyper-parameters of `setting.TRACED` may be traced.

    Args:
      setting: resolved.
      mesh: over whose devices each cohort is dealt; None leaves that to who runs it.
    """
    given = problem(setting)
    inner = strategy(setting.execution)
    automatic = setting.execution == "automatic"
    return Experiment(
        algorithm=_algorithm(setting, given.loss_fn),
        params=given.init,
        data=given.data,
        sampler=_sampler(setting),
        num_rounds=setting.rounds,
        aggregation=aggregation.RULES[setting.mode],
        execution=execution.sharded(mesh, inner) if mesh else None if automatic else inner,
        evaluate=_evaluate(given, setting.per_client),
        evaluate_every=setting.evaluate_every,
    )


def metrics(experiment: Experiment) -> tuple[str, ...]:
    """What its runs are measured by: what it evaluates, and what the clients report of training."""
    key = jax.random.key(0)
    params: Any = experiment.params
    found = jax.eval_shape(lambda key: experiment.evaluate(params(key)), key)  # type: ignore[misc]
    test = [name.removeprefix("test_") for name in found if name.startswith("test_")]
    return (*found, *(f"train_{name}" for name in test if name != "r2"))


def _evaluate(given: Problem, per_client: bool) -> Callable[[Params], dict[str, Array]]:
    clients = given.data if per_client else None
    measure = evaluator(given.loss_fn, given.test, clients, validation=given.validation)
    if not given.variances:
        return measure

    def with_r2(params: Params) -> dict[str, Array]:
        found = measure(params)
        r2 = {f"{k}_r2": 1 - found[f"{k}_loss"] / x for k, x in given.variances.items()}
        return {**r2, **found}

    return with_r2


def _algorithm(setting: Setting, loss_fn: Any) -> FederatedAlgorithm:
    rate: Any = setting.server_lr
    if setting.algorithm == "fedsgd":
        return fedsgd(loss_fn, _server_optimizer(setting))
    if setting.algorithm == "scaffold":
        schedule: Any = _schedule(setting)
        client_lr: Any = setting.client_lr if schedule is None else schedule
        return scaffold(loss_fn, client_lr, setting.local, rate)
    client, server = _client_optimizer(setting), _server_optimizer(setting)
    if setting.algorithm == "fedprox":
        mu: Any = setting.mu
        return fedprox(loss_fn, client, setting.local, mu, server)
    return fedavg(loss_fn, client, setting.local, server)


def _client_optimizer(setting: Setting) -> Optimizer:
    rate: Any = setting.client_lr
    momentum: Any = setting.client_momentum
    momentum = None if isinstance(momentum, float) and momentum == 0 else momentum
    schedule = _schedule(setting)
    if schedule is None:
        return optax.sgd(rate, momentum)
    return lambda round: optax.sgd(schedule(round), momentum)


def _schedule(setting: Setting) -> Callable[[Array], Any] | None:
    """The clients' learning rate by round; None where it is constant."""
    rate: Any = setting.client_lr
    span: Any = setting.decay_rounds
    if setting.schedule == "constant":
        return None
    schedule: Callable[[Any], Any]
    if setting.schedule == "cosine":
        schedule = optax.cosine_decay_schedule(rate, span, setting.decay_end)
    elif setting.schedule == "linear":
        end: Any = setting.decay_end
        schedule = optax.linear_schedule(rate, rate * end, span)
    else:
        stairs = setting.schedule == "step"
        schedule = optax.exponential_decay(rate, span, setting.decay_rate, staircase=stairs)
    return lambda round: schedule(round.astype(jnp.float32))


def _server_optimizer(setting: Setting) -> optax.GradientTransformation:
    """SGD, or Reddi et al.'s with the constants of their experiments (the defaults there)."""
    rate: Any = setting.server_lr
    if setting.server_optimizer in ADAPTIVE:
        return ADAPTIVE[setting.server_optimizer](rate)
    return optax.sgd(rate)


def _sampler(setting: Setting) -> Sampler:
    if setting.sampler == "everyone":
        return sampling.everyone()
    if setting.sampler == "bernoulli":
        q: Any = setting.fraction
        return sampling.bernoulli(q)
    return getattr(sampling, setting.sampler)(setting.slots)
