"""One run in plain values: what an option, a line of a file and an axis of a grid can say."""

from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any

from fedjax_sim import aggregation, execution, partition
from fedjax_sim.algorithms.server_optimizers import ADAPTIVE
from fedjax_sim.core.checks import check_count, check_known, check_number, is_concrete
from fedjax_sim.core.local_training import check_local
from fedjax_sim.core.types import LocalTraining
from fedjax_sim.settings.defaults import FETCHED, OF_DATASET, REGRESSIONS
from fedjax_sim.settings.schedules import first_without_training, share

FULL = "full"  # a batch_size
DATASETS = tuple(OF_DATASET)
PARTITIONS = ("iid", "shards", "dirichlet", "labels", "quantity", "natural")
_BY_LABEL = ("shards", "dirichlet", "labels")
ALGORITHMS = ("fedavg", "fedprox", "scaffold", "fedsgd")
SAMPLERS = ("uniform", "bernoulli", "weighted", "with_replacement", "everyone")
SCHEDULES = ("constant", "cosine", "linear", "exponential", "step")
SERVER_OPTIMIZERS = ("sgd", *ADAPTIVE)


# What may be an argument of a compiled program; a grid's other axes are part of it.
TRACED = ("client_lr", "client_momentum", "decay_end", "mu", "server_lr")

_DESCENDING = ("fedavg", "fedprox", "scaffold")
_OPTIMIZING = ("fedavg", "fedprox")
# Fields that there are only where another field has one of some values.
_BELONGS = {
    "alpha": ("partition", ("dirichlet",)),
    "shards_per_client": ("partition", ("shards",)),
    "classes_per_client": ("partition", ("labels",)),
    "skew": ("partition", ("quantity",)),
    "skew_parameter": ("partition", ("quantity",)),
    "min_examples": ("partition", ("dirichlet", "quantity")),
    "synthetic_alpha": ("dataset", ("synthetic",)),
    "synthetic_beta": ("dataset", ("synthetic",)),
    "fraction": ("sampler", SAMPLERS[:-1]),
    "epochs": ("algorithm", _DESCENDING),
    "batch_size": ("algorithm", _DESCENDING),
    "client_lr": ("algorithm", _DESCENDING),
    "client_momentum": ("algorithm", _OPTIMIZING),
    "schedule": ("algorithm", _DESCENDING),
    "decay_rounds": ("schedule", SCHEDULES[1:]),
    "decay_end": ("schedule", ("cosine", "linear")),
    "decay_rate": ("schedule", ("exponential", "step")),
    "mu": ("algorithm", ("fedprox",)),
    "server_optimizer": ("algorithm", (*_OPTIMIZING, "fedsgd")),
}


def _says(help: str, metavar: str | None = None, short: str | None = None) -> dict[str, Any]:
    return {"help": help, "metavar": metavar, "short": short}


@dataclass(frozen=True)
class Setting:
    """All that one run is. Every field is an option of `fedjax-sim run`, with the help it has here.

    None is a default that depends on other fields, or nothing, where the field belongs to another
    choice than the one made. The fields of `TRACED` may be traced.
    """

    dataset: str = field(
        default="digits",
        metadata=_says(
            "digits (10 classes; default), wind (regression), synthetic or synthetic_iid (10 "
            f"classes, of FedProx), or one that is fetched: {', '.join(FETCHED)}"
        ),
    )
    synthetic_alpha: float | None = field(
        default=None,
        metadata=_says("of --dataset synthetic: how far models differ (default: 1)", "ALPHA"),
    )
    synthetic_beta: float | None = field(
        default=None,
        metadata=_says("of --dataset synthetic: how far features differ (default: 1)", "BETA"),
    )
    partition: str | None = field(
        default=None,
        metadata=_says(
            "iid, shards, dirichlet, labels, quantity or natural (default where the dataset has "
            "natural clients, else dirichlet)", "HOW",
        ),
    )  # fmt: skip
    alpha: float | None = field(
        default=None, metadata=_says("of --partition dirichlet (default: 0.3)")
    )
    shards_per_client: int | None = field(
        default=None, metadata=_says("of --partition shards (default: 2)", "S")
    )
    classes_per_client: int | None = field(
        default=None, metadata=_says("of --partition labels (default: 2)", "N")
    )
    skew: str | None = field(
        default=None,
        metadata=_says(
            "of --partition quantity: sizes lognormal (default), power_law or dirichlet", "HOW"
        ),
    )
    skew_parameter: float | None = field(
        default=None,
        metadata=_says("of --skew: sigma, exponent or alpha (default: 1)", "X"),
    )
    min_examples: int | None = field(
        default=None,
        metadata=_says(
            "of --partition dirichlet and quantity: the fewest training examples of a client, 0 "
            "for any number (default: 1)",
            "N",
        ),
    )
    partition_seed: int = field(
        default=0, metadata=_says("the split, one for all seeds (default: 0)", "SEED")
    )
    model: str | None = field(
        default=None,
        metadata=_says(
            "logistic (default for digits, synthetic), 2nn (for mnist, fashion_mnist, activity), "
            "mlp (for regressions), character_lstm (for shakespeare) or transformer; of images cnn "
            "(default for cifar10), cifar_cnn or resnet18, too"
        ),
    )
    clients: int | None = field(
        default=None,
        metadata=_says(
            "clients (default: the natural ones; digits 50, wind 10, synthetic 30, images 100)",
            "K",
            "-K",
        ),
    )
    algorithm: str = field(
        default="fedavg", metadata=_says("fedavg (default), fedprox, scaffold or fedsgd")
    )
    mode: str = field(
        default="selected",
        metadata=_says(
            "aggregation rule: selected (default), all_clients, uniform or unbiased", "MODE"
        ),
    )
    sampler: str = field(
        default="uniform",
        metadata=_says("uniform (default), bernoulli, weighted, with_replacement or everyone"),
    )
    fraction: float | None = field(
        default=None,
        metadata=_says(
            "the cohort is m = max(1, round(C K)); of bernoulli, each client's probability "
            "(default: 0.1; of few natural clients 0.3 or 0.5, of shakespeare 0.01, of synthetic "
            "1/3)", "C", "-C",
        ),
    )  # fmt: skip
    epochs: int | None = field(default=None, metadata=_says("local epochs (default: 5)", "E", "-E"))
    batch_size: int | str | None = field(
        default=None, metadata=_says("block size, or full (default: 10)", "B", "-B")
    )
    client_lr: float | None = field(
        default=None,
        metadata=_says(
            "clients' SGD learning rate (default: 0.1; regressions 0.02, synthetic 0.01, "
            "shakespeare 1)",
            "ETA",
        ),
    )
    client_momentum: float | None = field(
        default=None, metadata=_says("of the clients' SGD (default: 0)", "BETA")
    )
    schedule: str | None = field(
        default=None,
        metadata=_says(
            "of the clients' learning rate over rounds: constant (default), cosine, linear, "
            "exponential or step", "HOW",
        ),
    )  # fmt: skip
    decay_rounds: int | None = field(
        default=None,
        metadata=_says(
            "of --schedule: rounds to its end (cosine, linear; default: all) or for one factor "
            "--decay-rate (exponential: 1; step: a third of all)", "T",
        ),
    )  # fmt: skip
    decay_end: float | None = field(
        default=None,
        metadata=_says("of --schedule cosine, linear: the share left at its end (default: 0)"),
    )
    decay_rate: float | None = field(
        default=None,
        metadata=_says("of --schedule exponential (default: 0.99), step (default: 0.1)"),
    )
    mu: float | None = field(default=None, metadata=_says("of --algorithm fedprox (default: 0.01)"))
    server_optimizer: str | None = field(
        default=None,
        metadata=_says(
            "sgd (default), or adam, yogi or adagrad as in Reddi et al. 2021, Algorithm 2"
        ),
    )
    server_lr: float | None = field(
        default=None,
        metadata=_says(
            "server's learning rate (default: 1; adaptive: 0.01; of fedsgd as --client-lr)", "ETA"
        ),
    )
    rounds: int = field(default=100, metadata=_says("rounds of each run (default: 100)", "R"))
    seed: int = field(default=0, metadata=_says("of the run, or the first one (default: 0)"))
    evaluate_every: int = field(
        default=1, metadata=_says("rounds between evaluations (default: 1)", "R")
    )
    validation: float | None = field(
        default=None,
        metadata=_says(
            "hold out this share of each client's training examples: the score, of which the best "
            "is chosen and the target reached, is then theirs and not the test set's (default: "
            "none)",
            "SHARE",
        ),
    )
    per_client: bool = field(
        default=False,
        metadata=_says("evaluate the clients too: how their metrics spread (default: no)"),
    )
    target: float | None = field(
        default=None,
        metadata=_says(
            "score to reach, accuracy or R^2 of a regression: a run ends there, a sweep and a "
            "comparison count the rounds"
        ),
    )
    execution: str = field(
        default="automatic",
        metadata=_says("automatic (default), vmapped, packed or packed:LANES"),
    )
    cores: int | None = field(default=None, metadata=_says("cores to use (default: all)", "N"))

    def resolved(self) -> "Setting":
        """The same with every None of a default filled in, checked.

        Raises:
          ValueError: naming the field, what was given and what is allowed.
        """
        check_known(self.dataset, DATASETS, "dataset")
        of = OF_DATASET[self.dataset]
        split = _one_of("partition", self.partition or ("natural" if of.natural else "dirichlet"),
                        PARTITIONS)  # fmt: skip
        if split == "natural" and not of.natural:
            natural = ", ".join(name for name, of in OF_DATASET.items() if of.natural)
            raise ValueError(f"partition natural needs a dataset with natural clients ({natural})")
        if split in _BY_LABEL and not of.labels:
            raise ValueError(
                f"partition {split} splits by label, and {self.dataset} has none; use natural, "
                "iid or quantity"
            )
        model = self.model or of.models[0]
        _one_of(f"model (of {self.dataset})", model, of.models)
        _one_of("algorithm", self.algorithm, ALGORITHMS)
        _one_of("mode", self.mode, tuple(aggregation.RULES))
        _one_of("sampler", self.sampler, SAMPLERS)
        _one_of("schedule", self.schedule or "constant", SCHEDULES)
        _one_of("server_optimizer", self.server_optimizer or "sgd", SERVER_OPTIMIZERS)
        clients = self.clients if self.clients is not None else of.clients
        if split == "natural" and of.fixed and clients != of.clients:
            raise ValueError(
                f"clients must be the {of.clients} that {self.dataset} has; got {clients} (any "
                "number with partition iid)"
            )
        found = replace(self, partition=split, model=model, clients=clients)
        found = found._with_defaults()
        found._check()
        return found

    def _with_defaults(self) -> "Setting":
        of_set, fedsgd = OF_DATASET[self.dataset], self.algorithm == "fedsgd"
        schedule = self.schedule or "constant"
        rate = of_set.client_lr
        adaptive = (self.server_optimizer or "sgd") != "sgd"
        third = max(1, self.rounds // 3) if isinstance(self.rounds, int) else 1
        defaults = {
            "alpha": 0.3,
            "shards_per_client": 2,
            "classes_per_client": 2,
            "skew": "lognormal",
            "skew_parameter": 1.0,
            # The split's own, 1, unless it is given: results of before there was a choice are of
            # the same setting.
            "min_examples": None,
            "synthetic_alpha": 1.0,
            "synthetic_beta": 1.0,
            "fraction": of_set.fraction,
            "epochs": 5,
            "batch_size": 10,
            "client_lr": rate,
            "client_momentum": 0.0,
            "schedule": "constant",
            "decay_rounds": {"exponential": 1, "step": third}.get(schedule, self.rounds),
            "decay_end": 0.0,
            "decay_rate": 0.1 if schedule == "step" else 0.99,
            "mu": 0.01,
            "server_optimizer": "sgd",
            "server_lr": 0.01 if adaptive else rate if fedsgd else 1.0,
        }
        made: dict[str, Any] = {}
        for name, default in defaults.items():
            of, where = _BELONGS.get(name, ("algorithm", ALGORITHMS))
            chosen = made.get(of, getattr(self, of))
            if chosen in where:
                made[name] = default if getattr(self, name) is None else getattr(self, name)
            elif getattr(self, name) is not None:
                raise ValueError(
                    f"{name} belongs to {of} {_listed(where)}; the {of} is {chosen or 'none'}"
                )
        return replace(self, **made)

    def _check(self) -> None:
        for name in ("rounds", "clients", "evaluate_every", "shards_per_client",
                     "classes_per_client", "decay_rounds", "cores"):  # fmt: skip
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))
        for name in ("partition_seed", "seed"):
            if not 0 <= getattr(self, name) < 2**32:
                raise ValueError(f"{name} must lie in [0, 2^32); got {getattr(self, name)}")
        for name, allows, says in (
            ("alpha", lambda x: x > 0, "positive"),
            ("synthetic_alpha", lambda x: x >= 0, "at least 0"),
            ("synthetic_beta", lambda x: x >= 0, "at least 0"),
            ("fraction", lambda c: 0 < c <= 1, "in (0, 1]"),
            ("client_lr", lambda x: x > 0, "positive"),
            ("client_momentum", lambda x: 0 <= x < 1, "in [0, 1)"),
            ("decay_end", lambda x: 0 <= x <= 1, "in [0, 1]"),
            ("decay_rate", lambda x: 0 < x <= 1, "in (0, 1]"),
            ("mu", lambda x: x >= 0, "at least 0"),
            ("server_lr", lambda x: x > 0, "positive"),
            ("target", lambda x: x <= 1, "at most 1"),
            ("validation", lambda x: 0 < x < 1, "in (0, 1)"),
        ):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), allows, says)
        if self.min_examples is not None:
            partition.check_min_examples(self.min_examples)
        if self.skew is not None:
            partition.check_skew(self.skew, self.skew_parameter, "skew_parameter")
        if self.epochs is not None:
            if isinstance(self.batch_size, str) and self.batch_size != FULL:
                raise ValueError(
                    f"batch_size must be a whole number or {FULL}; got {self.batch_size!r}"
                )
            check_local(self.local)
        self._check_schedule()
        lanes = strategy(self.execution).lanes
        if lanes is not None and lanes > self.slots:
            raise ValueError(
                f"execution {self.execution} needs a lane's client in every cohort; the smallest "
                f"has {self.slots}"
            )

    def _check_schedule(self) -> None:
        """Refuses a schedule that leaves whole rounds at rate 0, in which nobody trains."""
        given = (self.client_lr, self.decay_end, self.decay_rate)
        if self.decay_rounds is None or not all(map(is_concrete, given)):
            return
        schedule: Any = self.schedule
        client_lr: Any = self.client_lr
        decay = partial(
            share,
            schedule,
            span=self.decay_rounds,
            end=self.decay_end or 0.0,
            factor=1.0 if self.decay_rate is None else self.decay_rate,
        )
        first = first_without_training(lambda round: client_lr * decay(round), self.rounds)
        if first is None:
            return
        if self.decay_end is not None:
            raise ValueError(
                f"decay_rounds must be at least the {self.rounds} rounds where decay_end is "
                f"{self.decay_end:g}: {schedule} leaves a rate of 0 from round {first} on, and "
                f"nobody trains; got {self.decay_rounds} (a positive decay_end trains on)"
            )
        raise ValueError(
            f"decay_rate must leave a rate that float32 can tell from 0 in all {self.rounds} "
            f"rounds, and {schedule} leaves none from round {first} on; got {self.decay_rate:g} "
            f"with decay_rounds {self.decay_rounds}"
        )

    @property
    def local(self) -> LocalTraining:
        """E and B, of a resolved setting whose algorithm has them."""
        batch = None if isinstance(self.batch_size, str) else self.batch_size
        return LocalTraining(epochs=self.epochs, batch_size=batch)  # type: ignore[arg-type]

    @property
    def slots(self) -> int:
        """Of a cohort, of a resolved setting."""
        assert self.clients is not None
        if self.sampler in ("bernoulli", "everyone") or self.fraction is None:
            return self.clients
        return cohort_size(self.fraction, self.clients)

    @property
    def score(self) -> str:
        """The evaluated metric that tells good from bad; higher is better."""
        return self.test_score if self.validation is None else f"validation_{self.measure}"

    @property
    def test_score(self) -> str:
        """The same on the test set, which is the score unless there is a validation set."""
        return f"test_{self.measure}"

    @property
    def measure(self) -> str:
        """What is measured, of any set."""
        return "r2" if self.dataset in REGRESSIONS else "accuracy"

    def without_target(self) -> "Setting":
        """The same but for where it stops: what a resume must find as it was."""
        return replace(self, target=None)

    def values(self) -> dict[str, Any]:
        """The fields that have a value, by name."""
        found = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in found.items() if value is not None}


NAMES = tuple(f.name for f in fields(Setting))
# What the data and their split depend on.
OF_DATA = (
    "dataset", "synthetic_alpha", "synthetic_beta", "partition", "alpha", "shards_per_client",
    "classes_per_client", "skew", "skew_parameter", "min_examples", "partition_seed",
    "clients", "validation",
)  # fmt: skip


def cohort_size(fraction: float, num_clients: int) -> int:
    """m = max(1, round(C K)), McMahan et al. 2017; half is rounded up."""
    return max(1, int(fraction * num_clients + 0.5))


def strategy(text: str) -> execution.Strategy:
    """The strategy that `execution` names.

    Raises:
      ValueError: for a name that is none.
    """
    name, _, lanes = text.partition(":")
    if name == "automatic" and not lanes:
        return execution.automatic()
    if name == "vmapped" and not lanes:
        return execution.vmapped()
    if name == "packed" and (not lanes or (lanes.isdecimal() and int(lanes) > 0)):
        return execution.packed(int(lanes) if lanes else None)
    raise ValueError(f"execution must be automatic, vmapped, packed or packed:LANES; got {text!r}")


def _listed(words: tuple[str, ...]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {value!r}")
    return value
