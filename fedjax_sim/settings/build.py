"""The experiment of a setting: its data, model, algorithm and measures."""

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from fedjax_sim import execution, models
from fedjax_sim.algorithms.facts import Facts
from fedjax_sim.algorithms.optimizers import Optimizer
from fedjax_sim.algorithms.server_optimizers import ADAPTIVE
from fedjax_sim.core.evaluate import Evaluate, OfState, subject_of
from fedjax_sim.core.types import Array, FederatedAlgorithm, Params
from fedjax_sim.data import FederatedData, Source
from fedjax_sim.datasets import Dataset
from fedjax_sim.models import mixed_precision
from fedjax_sim.sampling import Sampler
from fedjax_sim.settings import stores
from fedjax_sim.settings.attacked import attacked, rule
from fedjax_sim.settings.options import choose
from fedjax_sim.settings.resolved import ClientSteps, DataChoice, ResolvedSetting
from fedjax_sim.settings.splits import parts_of_clients, split
from fedjax_sim.settings.strategies import strategy
from fedjax_sim.settings.timing import clock, timed
from fedjax_sim.settings.user_files import called
from fedjax_sim.settings.wrapping import wrapped
from fedjax_sim.training.evaluator import evaluator
from fedjax_sim.training.experiment import Experiment


class Problem(NamedTuple):
    """A setting's data and model."""

    data: FederatedData | Source
    test: FederatedData
    init: Callable[[Array], Params]
    loss_fn: Callable[..., Any]
    variances: dict[str, float]  # of a regression's targets in test and validation
    validation: FederatedData | None = None
    unlabelled: Mapping[str, np.ndarray] | None = None  # of the server


def problem(setting: ResolvedSetting) -> Problem:
    """Loads and splits the data of a setting, and makes its model; cached by split and model.

    Raises:
      ValueError: if the split is impossible for the data.
      FileNotFoundError: if the data must be fetched first; the message says how.
    """
    option_names = (option.name for option in setting.choices.model.options)
    options = {name: setting.options[name] for name in option_names if name in setting.options}
    return _problem(setting.data, setting.model, tuple(options.items()))


@lru_cache(maxsize=8)  # few, because each entry holds a copy of the data set
def _problem(
    choice: DataChoice, model_name: str, model_options: tuple[tuple[str, Any], ...]
) -> Problem:
    # A sweep may call this while it traces; the data must be concrete all the same.
    with jax.ensure_compile_time_eval():
        dealt = split(choice)
        dataset = dealt.dataset
        data = stores.federation(choice, dataset, dealt.client_ids)
        test = FederatedData.from_clients([dataset.test])
        held_out = dataset.validation
        validation = None if held_out is None else FederatedData.from_clients([held_out])
    model = _model(model_name, dataset, dict(model_options))
    if dataset.num_classes is None:
        loss_fn = models.squared_error(model.apply)
        measured = {"validation": dataset.validation, "test": dataset.test}
        variances = {k: float(np.var(x["y"])) for k, x in measured.items() if x is not None}
        return Problem(data, test, model.init, loss_fn, variances, validation, dealt.unlabelled)
    cross_entropy = models.cross_entropy(model.apply)
    return Problem(data, test, model.init, cross_entropy, {}, validation, dealt.unlabelled)


def _model(name: str, dataset: Dataset, options: Mapping[str, Any] | None = None) -> models.Model:
    """The model of that name for the data set."""
    declaration = choose("model", name)
    shape, classes = dataset.train["x"].shape[1:], dataset.num_classes
    facts = declaration.facts
    is_grey = facts is not None and facts.needs_channels and len(shape) == 2

    def call() -> models.Model:
        return declaration.call(
            options or {},
            input_shape=(*shape, 1) if is_grey else shape,
            num_classes=classes,
            outputs=1 if classes is None else classes,
            vocabulary=classes,
            length=shape[0] if shape else 1,
        )

    model = called("model", name, call, models.Model, "an fs.models.Model")
    if not is_grey:
        return model
    return model._replace(apply=lambda params, x: model.apply(params, x[..., None]))


def experiment(setting: ResolvedSetting, mesh: Mesh | None = None) -> Experiment:
    """The experiment of a setting, whose options may be traced if they are declared so.

    Args:
      mesh: the devices over which each cohort is dealt, and what is measured; None: one device
        measures, and who runs the experiment chooses for the cohort.
    """
    parts = problem(setting)
    inner = strategy(setting.execution)
    automatic = setting.execution == "automatic"
    # What is measured is measured in the parameters' own precision.
    loss_fn = parts.loss_fn
    loss_fn = loss_fn if setting.compute is None else mixed_precision(loss_fn, setting.compute)
    algorithm = wrapped(_algorithm(setting, loss_fn, parts.unlabelled), setting)
    under = attacked(setting, parts.data)
    return Experiment(
        algorithm=algorithm,
        params=_first_params(setting, parts.init),
        data=under.data,
        sampler=sampler(setting),
        num_rounds=setting.rounds,
        aggregation=rule(setting),
        execution=execution.sharded(mesh, inner) if mesh else None if automatic else inner,
        evaluate=_evaluate(setting, parts, algorithm, mesh),
        evaluate_every=setting.evaluate_every,
        attack=under.attack,
        malicious=under.malicious,
        # An asynchronous algorithm has the clock itself.
        clock=clock(setting) if setting.choices.asynchronous is None else None,
    )


def check_rounds(settings: Iterable[ResolvedSetting]) -> None:
    """Traces a round of each setting, which may refuse it; computes nothing."""
    for setting in settings:
        of_setting, key = experiment(setting), jax.random.key(setting.seed)
        of_setting.shapes_of_round(key, of_setting.check(key))


def metrics(experiment: Experiment) -> tuple[str, ...]:
    """Names of the metrics of an experiment's runs: evaluated ones, and those of training."""
    evaluate = experiment.evaluate
    assert evaluate is not None  # the experiment of a setting always has it
    state = jax.eval_shape(experiment.start, jax.random.key(0))
    evaluated = jax.eval_shape(evaluate, subject_of(evaluate, state))
    test = [name.removeprefix("test_") for name in evaluated if name.startswith("test_")]
    return (*evaluated, *(f"train_{name}" for name in test if name != "r2"))


def _first_params(
    setting: ResolvedSetting, init: Callable[[Array], Params]
) -> Callable[[Array], Params]:
    """What draws the first model, or as many as the algorithm begins with, leaves [C, ...]."""
    facts = setting.choices.algorithm.facts
    if not isinstance(facts, Facts) or facts.several_models is None:
        return init
    number = setting.options[facts.several_models]
    return lambda key: jax.vmap(init)(jax.random.split(key, number))


def _evaluate(
    setting: ResolvedSetting, parts: Problem, algorithm: FederatedAlgorithm, mesh: Mesh | None
) -> Evaluate:
    """The measures of a setting: of the global model, or of the clients' own where they have any.

    A client's own is measured on the client's own part of the test and the validation set.
    """
    clients = parts.data if setting.per_client else None
    measure: Evaluate
    if algorithm.personal is None:
        measure = evaluator(
            parts.loss_fn, parts.test, clients, validation=parts.validation, mesh=mesh
        )
    else:
        own = parts_of_clients(setting.data)
        measure = evaluator(
            parts.loss_fn,
            own.test,
            None if clients is None else stores.in_memory(clients),
            validation=own.validation,
            personal=algorithm,
            train=stores.in_memory(parts.data),
            mesh=mesh,
        )
    if not parts.variances:
        return measure

    def with_r2(subject: Any) -> dict[str, Array]:
        measured = measure(subject)
        r2 = {f"{k}_r2": 1 - measured[f"{k}_loss"] / x for k, x in parts.variances.items()}
        return {**r2, **measured}

    return OfState(with_r2) if isinstance(measure, OfState) else with_r2


def _algorithm(setting: ResolvedSetting, loss_fn: Any, unlabelled: Any) -> FederatedAlgorithm:
    arguments: dict[str, Any] = {"loss_fn": loss_fn, "local": setting.local}
    if unlabelled is not None:
        arguments["unlabelled"] = unlabelled
    if setting.client is not None:
        schedule = _schedule(setting.client)
        arguments["client_lr"] = setting.client.lr if schedule is None else schedule
        arguments["client_optimizer"] = _client_optimizer(setting.client)
    if setting.server is not None:
        arguments["server_lr"] = setting.server.lr
        make = ADAPTIVE.get(setting.server.optimizer or "", optax.sgd)
        arguments["server_optimizer"] = make(setting.server.lr)

    def call() -> FederatedAlgorithm:
        return setting.choices.algorithm.call(setting.options, **arguments)

    kind = "an fs.FederatedAlgorithm"
    return called("algorithm", setting.algorithm, call, FederatedAlgorithm, kind)


def _client_optimizer(client: ClientSteps) -> Optimizer:
    momentum = client.momentum
    momentum = None if isinstance(momentum, float) and momentum == 0 else momentum
    schedule = _schedule(client)
    if schedule is None:
        return optax.sgd(client.lr, momentum)
    return lambda round: optax.sgd(schedule(round), momentum)


def _schedule(client: ClientSteps) -> Callable[[Array], Any] | None:
    """The clients' learning rate by round; None where it is constant."""
    rate, decay = client.lr, client.decay
    if decay is None:
        return None
    schedule: Callable[[Any], Any]
    if decay.schedule == "cosine":
        schedule = optax.cosine_decay_schedule(rate, decay.rounds, decay.end)
    elif decay.schedule == "linear":
        schedule = optax.linear_schedule(rate, rate * decay.end, decay.rounds)
    else:
        stairs = decay.schedule == "step"
        schedule = optax.exponential_decay(rate, decay.rounds, decay.rate, staircase=stairs)
    return lambda round: schedule(round.astype(jnp.float32))


def sampler(setting: ResolvedSetting) -> Sampler:
    """The sampler of a setting, with who is available and the deadline."""
    chosen = setting.choices.sampler
    model = {"loss_fn": problem(setting).loss_fn} if chosen.takes("loss_fn") else {}
    own = chosen.call(setting.options, m=setting.slots, q=setting.fraction, **model)
    return timed(own, setting, problem)
