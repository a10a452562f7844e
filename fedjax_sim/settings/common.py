"""The settings that all runs share, in the order that a file has them."""

from collections.abc import Callable
from typing import Any

from fedjax_sim.algorithms.server_optimizers import ADAPTIVE
from fedjax_sim.core import registry
from fedjax_sim.core.registry import Option
from fedjax_sim.datasets.types import Facts
from fedjax_sim.settings import strategies
from fedjax_sim.settings.rooms import NONE, declarations

FULL = "full"  # a batch_size
SCHEDULES = ("constant", "cosine", "linear", "exponential", "step")
SERVER_OPTIMIZERS = ("sgd", *ADAPTIVE)


def _listed(room: str) -> str:
    """The names of a room, the default one marked."""
    return ", ".join(
        f"{name} (default)" if declaration.is_default else name
        for name, declaration in declarations(room).items()
    )


def _listed_or_none(room: str) -> str:
    """The names of a room that a setting may go without."""
    return f"{', '.join(declarations(room))}, or {NONE} (default)"


def _by_dataset(value: Callable[[Facts], Any]) -> str:
    """A default that depends on the data set: the most common one, then the others."""
    having: dict[Any, list[str]] = {}
    for name, declaration in declarations("dataset").items():
        if declaration.facts is None:
            continue  # its facts are derived from its arrays once it is loaded
        having.setdefault(value(declaration.facts), []).append(name)
    common, *other_defaults = sorted(having, key=lambda default: -len(having[default]))
    other_texts = [
        f"{_number(default)} for {', '.join(having[default])}" for default in other_defaults
    ]
    return f"(default: {'; '.join([_number(common), *other_texts])})"


def _number(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _text(name: str, help: str, **fields: Any) -> Option:
    return Option(name, help, kind=str, **fields)


def _count(name: str, help: str, **fields: Any) -> Option:
    return Option(name, help, **{"kind": int, "range": registry.AT_LEAST_1, **fields})


# The options in the order of a file. A tuple stands for all options that a room's files declare.
IN_ORDER: tuple[Option | tuple[str], ...] = (
    _text(
        "dataset",
        f"{_listed('dataset')}; a folder of LEAF, HDF5, SQLite, NPZ or CSV files, or "
        "FILE.py:FUNCTION",
    ),
    ("dataset",),
    _text(
        "partition",
        f"{_listed('partition')} {_by_dataset(lambda facts: facts.partition)}",
        metavar="HOW",
    ),
    ("partition",),
    Option(
        "partition_seed",
        "the split, one for all seeds (default: 0)",
        default=0,
        kind=int,
        range=registry.OF_32_BITS,
        metavar="SEED",
    ),
    _text(
        "model",
        f"{_listed('model')} or FILE.py:FUNCTION; a dataset takes those of its kind "
        f"{_by_dataset(lambda facts: facts.model)}",
    ),
    ("model",),
    _count(
        "clients", f"clients {_by_dataset(lambda facts: facts.clients)}", metavar="K", short="-K"
    ),
    _text("algorithm", f"{_listed('algorithm')}; or FILE.py:FUNCTION"),
    _text("mode", f"aggregation rule: {_listed('mode')}", metavar="MODE"),
    ("mode",),
    _text("sampler", _listed("sampler")),
    ("sampler",),
    Option(
        "fraction",
        "the cohort is m = max(1, round(C K)); each client's probability where "
        f"the sampler draws each on its own {_by_dataset(lambda facts: facts.fraction)}",
        range=registry.UP_TO_1,
        metavar="C",
        short="-C",
    ),
    _count("epochs", "local epochs (default: 5)", default=5, metavar="E", short="-E"),
    _count(
        "batch_size",
        "block size, or full (default: 10)",
        default=10,
        words=(FULL,),
        metavar="B",
        short="-B",
    ),
    Option(
        "client_lr",
        f"clients' SGD learning rate {_by_dataset(lambda facts: facts.client_lr)}",
        range=registry.POSITIVE,
        traced=True,
        metavar="ETA",
    ),
    Option(
        "client_momentum",
        "of the clients' SGD (default: 0)",
        default=0.0,
        range=registry.BELOW_1,
        traced=True,
        metavar="BETA",
    ),
    _text(
        "schedule",
        "of the clients' learning rate over rounds: constant (default), cosine, "
        "linear, exponential or step",
        default="constant",
        choices=SCHEDULES,
        metavar="HOW",
    ),
    _count(
        "decay_rounds",
        "of --schedule: rounds to its end (cosine, linear; default: all) or for "
        "one factor --decay-rate (exponential: 1; step: a third of all)",
        metavar="T",
    ),
    Option(
        "decay_end",
        "of --schedule cosine, linear: the share left at its end (default: 0)",
        default=0.0,
        range=registry.FROM_0_TO_1,
        traced=True,
    ),
    Option(
        "decay_rate",
        "of --schedule exponential (default: 0.99), step (default: 0.1)",
        range=registry.UP_TO_1,
    ),
    ("algorithm",),
    Option(
        "unlabelled",
        "of an algorithm whose server distils: the share of each client's training examples that "
        "the server has in the client's place, without labels (default: 0.1)",
        default=0.1,
        range=registry.WITHIN_0_AND_1,
        metavar="SHARE",
    ),
    _text(
        "server_optimizer",
        "sgd (default), or adam, yogi or adagrad as in Reddi et al. 2021, Algorithm 2",
        default="sgd",
        choices=SERVER_OPTIMIZERS,
    ),
    Option(
        "server_lr",
        "server's learning rate (default: 1; adaptive: 0.01; or the algorithm's own)",
        default=1.0,
        range=registry.POSITIVE,
        traced=True,
        metavar="ETA",
    ),
    _text(
        "before",
        "what is done to the updates before a --mode that sees all of them: "
        f"{_listed_or_none('before')}",
        metavar="HOW",
    ),
    ("before",),
    _text(
        "attack",
        f"what malicious clients send, or train on: {_listed_or_none('attack')}",
        metavar="HOW",
    ),
    ("attack",),
    Option(
        "malicious",
        "of --attack: share of the clients, drawn by the partition's seed",
        range=registry.UP_TO_1,
        traced=True,
        metavar="SHARE",
    ),
    _text("malicious_ids", "of --attack, in its place: their numbers, as 3,7", metavar="IDS"),
    _text(
        "compress",
        f"how clients send their updates: {_listed_or_none('compress')}",
        metavar="CODEC",
    ),
    ("compress",),
    Option(
        "error_feedback",
        "of --compress: whether a client sends later what its codec held back (default: no)",
        kind=bool,
        default=False,
    ),
    _text(
        "downlink",
        f"how the server sends its model: {_listed_or_none('downlink')}",
        metavar="CODEC",
    ),
    ("downlink",),
    Option(
        "downlink_error_feedback",
        "of --downlink: whether it sends, to all clients, what they do not have yet, and not the "
        "model (default: no)",
        kind=bool,
        default=False,
    ),
    _text(
        "privacy",
        "what is clipped and noised of what clients send, with --mode unbiased and --sampler "
        f"bernoulli by default (extra dp): {_listed_or_none('privacy')}",
        metavar="HOW",
    ),
    ("privacy",),
    Option(
        "delta",
        "of --privacy, whose epsilon is a column of the results: well below one over the number of "
        "clients (default: 1e-5)",
        default=1e-5,
        range=registry.WITHIN_0_AND_1,
    ),
    Option(
        "epsilon",
        "of --privacy: what the rounds may spend in all, in the place of --noise-multiplier",
        range=registry.POSITIVE,
    ),
    _text(
        "clock",
        "how fast clients are, which gives every round its simulated seconds: "
        f"{_listed_or_none('clock')}",
        metavar="HOW",
    ),
    ("clock",),
    Option(
        "deadline",
        "of --clock: simulated seconds that a round waits for a client at most (default: none)",
        range=registry.POSITIVE,
        metavar="S",
    ),
    _text(
        "late",
        "of --clock: whether a client that misses --deadline is left out, drop (default), or sends "
        "the whole steps that it has done, partial",
        choices=("drop", "partial"),
    ),
    _text(
        "availability",
        f"which clients can be reached in a round: {_listed_or_none('availability')}",
        metavar="HOW",
    ),
    ("availability",),
    _text(
        "asynchronous",
        "whether the server waits for the first arrivals alone, in the time of --clock, with "
        "--mode uniform and --sampler everyone by default: "
        f"{_listed_or_none('asynchronous')}",
        metavar="HOW",
    ),
    ("asynchronous",),
    _count("rounds", "rounds of each run (default: 100)", default=100, metavar="R"),
    Option(
        "seed",
        "of the run, or the first one (default: 0)",
        default=0,
        kind=int,
        range=registry.OF_32_BITS,
    ),
    _count("evaluate_every", "rounds between evaluations (default: 1)", default=1, metavar="R"),
    Option(
        "validation",
        "hold out this share of each client's training examples: the score, of "
        "which the best is chosen and the target reached, is then theirs and not the test "
        "set's (default: none)",
        range=registry.WITHIN_0_AND_1,
        metavar="SHARE",
    ),
    _text(
        "compute",
        "bfloat16: training computes in it, of parameters of float32 (default: in float32)",
        choices=("bfloat16",),
    ),
    Option(
        "per_client",
        "evaluate the clients too: how their metrics spread (default: no)",
        default=False,
        kind=bool,
    ),
    Option(
        "target",
        "score to reach, accuracy or R^2 of a regression: a run ends there, a sweep "
        "and a comparison count the rounds",
        range=registry.AT_MOST_1,
    ),
    _text("execution", strategies.forms(" (default)"), default=strategies.default_strategy()),
    _count("cores", "cores to use (default: all)", metavar="N"),
)

# Shared settings that only those have who use one of these rooms: the room -> their names.
OF_OPTIONAL = {
    "attack": ("malicious", "malicious_ids"),
    "compress": ("error_feedback",),
    "downlink": ("downlink_error_feedback",),
    "privacy": ("delta", "epsilon"),
    "clock": ("deadline", "late"),
}
