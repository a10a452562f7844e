"""Grids of hyper-parameters: products, zips and random draws."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_sim.core.checks import check_count, check_number
from fedjax_sim.core.randomness import check_key
from fedjax_sim.core.types import Array


class Uniform(NamedTuple):
    """Draws from [low, high)."""

    low: float
    high: float

    def draw(self, rng: np.random.Generator) -> float:
        return float(rng.uniform(self.low, self.high))


class LogUniform(NamedTuple):
    """Draws whose logarithm is uniform."""

    low: float
    high: float

    def draw(self, rng: np.random.Generator) -> float:
        return float(np.exp(rng.uniform(np.log(self.low), np.log(self.high))))


class Choice(NamedTuple):
    """Draws one of some values, each equally likely."""

    values: tuple[Any, ...]

    def draw(self, rng: np.random.Generator) -> Any:
        return self.values[int(rng.integers(len(self.values)))]


class Grid:
    """An ordered list of configurations, each a dict name -> value, all of the same names.

    `a * b` has every pair of a configuration of a and one of b, `a + b` those of a and then of b.

    >>> grid = product(lr=[0.1, 0.2]) * zip(epochs=[1, 5], batch_size=[10, 50])
    >>> len(grid), list(grid)[1]
    (4, {'lr': 0.1, 'epochs': 5, 'batch_size': 50})
    """

    def __init__(self, configurations: Sequence[Mapping[str, Any]]) -> None:
        self.configurations = tuple(dict(configuration) for configuration in configurations)
        if not self.configurations:
            raise ValueError("a grid must have at least one configuration; got none")
        names = self.names
        for configuration in self.configurations:
            if tuple(sorted(configuration)) != tuple(sorted(names)):
                raise ValueError(
                    "the configurations of a grid must have the same names; got "
                    f"{', '.join(names)} and {', '.join(configuration)}"
                )

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the hyper-parameters."""
        return tuple(self.configurations[0])

    def __len__(self) -> int:
        return len(self.configurations)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.configurations)

    def __add__(self, other: "Grid") -> "Grid":
        return Grid(self.configurations + other.configurations)

    def __mul__(self, other: "Grid") -> "Grid":
        shared = set(self.names) & set(other.names)
        if shared:
            raise ValueError(f"grids to multiply must not share names; both have {sorted(shared)}")
        return Grid([{**a, **b} for a in self for b in other])


def product(**axes: Sequence[Any]) -> Grid:
    """Every combination of the axes' values, the last axis changing fastest.

    Raises:
      ValueError: for an axis without values, or none that is a sequence of them.
    """
    grid = Grid([{}])
    for name, values in axes.items():
        grid = grid * Grid([{name: value} for value in _values(name, values)])
    return grid


def zip(**axes: Sequence[Any]) -> Grid:
    """The axes' first values together, their second ones, and so on.

    Raises:
      ValueError: if the axes differ in length, and as `product`.
    """
    lists = {name: _values(name, values) for name, values in axes.items()}
    lengths = {len(values) for values in lists.values()}
    if len(lengths) != 1:
        lengths_text = ", ".join(f"{name}: {len(values)}" for name, values in lists.items())
        raise ValueError(f"zipped axes must have the same length; got {lengths_text or 'none'}")
    return Grid([{name: v[i] for name, v in lists.items()} for i in range(lengths.pop())])


def random(key: Array, num: int, **axes: Uniform | LogUniform | Choice) -> Grid:
    """`num` different configurations, each value drawn on its own.

    Args:
      key: one typed key; the same key draws the same grid.
      axes: name -> `uniform`, `log_uniform` or `choice`.

    Raises:
      ValueError: if num < 1 or more than choices can make, without an axis, or for one that is no
        distribution.

    >>> configurations = list(random(jax.random.key(0), 2, lr=log_uniform(1e-3, 1.0)))
    >>> all(1e-3 <= configuration["lr"] < 1 for configuration in configurations)
    True
    """
    check_key(key)
    check_count("num", num)
    for name, axis in axes.items():
        if not isinstance(axis, (Uniform, LogUniform, Choice)):
            raise ValueError(f"{name} must be grid.uniform, .log_uniform or .choice; got {axis!r}")
    if not axes:
        raise ValueError("axes must be one or more, as lr=grid.log_uniform(1e-3, 1.0)")
    sizes = [len({*map(repr, x.values)}) for x in axes.values() if isinstance(x, Choice)]
    if len(sizes) == len(axes) and num > math.prod(sizes):
        raise ValueError(
            f"num must be at most {math.prod(sizes)}, the combinations of the choices; got {num}"
        )
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    configurations: dict[str, dict[str, Any]] = {}
    while len(configurations) < num:
        configuration = {name: axis.draw(rng) for name, axis in axes.items()}
        configurations.setdefault(repr(configuration), configuration)
    return Grid([*configurations.values()])


def uniform(low: float, high: float) -> Uniform:
    """Draws from [low, high)."""
    _check_range(low, high)
    return Uniform(low, high)


def log_uniform(low: float, high: float) -> LogUniform:
    """Draws from [low, high), low > 0, whose logarithm is uniform."""
    check_number("low", low, lambda x: x > 0, "positive")
    _check_range(low, high)
    return LogUniform(low, high)


def choice(values: Sequence[Any]) -> Choice:
    """Draws one of some values."""
    return Choice(tuple(_values("values", values)))


class Numbered(float):
    """A word as its number among others, for an axis that a sweep traces."""

    def __new__(cls, number: int, name: str) -> "Numbered":
        """The number `number`, which tables call `name`."""
        value = super().__new__(cls, number)
        value.name = name
        return value

    name: str

    def __repr__(self) -> str:
        return f"<{self.name}>"


def numbered(names: Sequence[str]) -> list[Numbered]:
    """Words as their numbers 0, 1, ...: an axis of them is traced, and all are one program.

    The experiment is given the number, and chooses by it, as `fs.aggregation.chosen` and
    `fs.attacks.chosen` do. Results have the words.

    Raises:
      ValueError: for no word, or one that stands twice.

    >>> import fedjax_sim as fs, numpy as np, optax
    >>> data = fs.FederatedData.from_clients([{"x": np.ones(n), "y": np.ones(n)} for n in (1, 2)])
    >>> loss_fn = lambda w, batch, key: (batch["x"] * w - batch["y"]) ** 2
    >>> rules = {"selected": fs.aggregation.selected, "uniform": fs.aggregation.uniform}
    >>> def experiment(rule):
    ...     chosen = fs.aggregation.chosen(rule, *rules.values())
    ...     algorithm = fs.fedavg(loss_fn, optax.sgd(0.1), fs.LocalTraining())
    ...     return fs.Experiment(algorithm, 0.0, data, fs.sampling.everyone(), 3, chosen)
    >>> grid = product(rule=numbered(rules))
    >>> [run.configuration["rule"] for run in fs.sweep(experiment, grid, keys=[0]).runs]
    ['selected', 'uniform']
    """
    words = _values("names", names)
    if len(set(words)) != len(words) or not all(isinstance(word, str) for word in words):
        raise ValueError(f"names must be words, each once; got {words}")
    return [Numbered(i, word) for i, word in enumerate(words)]


def _check_range(low: float, high: float) -> None:
    check_number("low", low, lambda x: True, "a number")
    check_number("high", high, lambda x: x > low, f"above low = {low}")


def _values(name: str, values: Any) -> list[Any]:
    if isinstance(values, (str, bytes)) or not hasattr(values, "__iter__"):
        raise ValueError(f"{name} must be a sequence of values; got {values!r}")
    plain_values = [
        x.item() if isinstance(x, (np.generic, np.ndarray, jax.Array)) and x.ndim == 0 else x
        for x in values
    ]
    if not plain_values:
        raise ValueError(f"{name} must have at least one value; got none")
    return plain_values
