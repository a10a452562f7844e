"""Splits by size alone: equal sizes, or sizes that follow one of three laws."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from fedjax_sim.core.checks import check_count, check_number
from fedjax_sim.core.registry import AT_LEAST_0, Option, declare
from fedjax_sim.core.types import Array
from fedjax_sim.partition.dealing import (
    MIN_EXAMPLES,
    check_clients,
    check_concentration,
    check_minimum,
    deal,
    generator,
)

SKEWS = ("lognormal", "power_law", "dirichlet")  # of `quantity`


@declare("a random split into equal parts")
def iid(key: Array, num_examples: int, num_clients: int) -> np.ndarray:
    """A random split into K parts whose sizes differ by at most one.

    Args:
      key: one typed key.
      num_examples: N.
      num_clients: K, at most N.

    Returns:
      Int[N], the client of each example.

    Raises:
      ValueError: if K < 1 or K > N.

    >>> import jax
    >>> np.bincount(iid(jax.random.key(0), 10, 3)).tolist()
    [4, 3, 3]
    """
    check_count("num_examples", num_examples)
    check_clients(num_clients, num_examples)
    rng = generator(key)
    return deal(np.array_split(rng.permutation(num_examples), num_clients))


def _check_options(options: Mapping[str, Any]) -> None:
    check_skew(options["skew"], options["skew_parameter"], "skew_parameter")


@declare(
    "a random split into parts of very different sizes",
    Option("skew", "law of the sizes", "lognormal", kind=str, choices=SKEWS, metavar="HOW"),
    Option(
        "skew_parameter",
        "sigma, exponent or alpha of the law",
        1.0,
        range=AT_LEAST_0,
        parameter="parameter",
        metavar="X",
    ),
    MIN_EXAMPLES,
    check=_check_options,
)
def quantity(
    key: Array,
    num_examples: int,
    num_clients: int,
    skew: str = "lognormal",
    parameter: float = 1.0,
    min_examples: int = 1,
) -> np.ndarray:
    """Quantity skew: a random split into parts of very different sizes.

    Every client has `min_examples`, and of the rest a share proportional to s_k, rounded so that
    sizes sum to N (largest remainders first):

        lognormal    s_k = exp(sigma z_k), z_k ~ N(0, 1)
        power_law    s_k = r_k^-a, r_k the client's place in a random order, from 1 to K
        dirichlet    s ~ Dirichlet(alpha, ..., alpha), the quantity skew of Li et al. 2022
                     (arXiv 2102.02079)

    Labels are as in all of the data, but for chance.

    Args:
      key: one typed key.
      num_examples: N.
      num_clients: K, with K * min_examples <= N.
      skew: "lognormal", "power_law" or "dirichlet".
      parameter: sigma >= 0, a >= 0 or alpha > 0; alike sizes are at 0, 0 and infinity.
      min_examples: 0 allows clients without examples.

    Returns:
      Int[N], the client of each example.

    Raises:
      ValueError: if K > N, the law is unknown, its parameter out of range, or there are too few
        examples for `min_examples`.

    >>> import jax
    >>> np.sort(np.bincount(quantity(jax.random.key(0), 100, 4, "power_law"))).tolist()
    [13, 16, 24, 47]
    """
    check_count("num_examples", num_examples)
    check_clients(num_clients, num_examples)
    check_minimum(min_examples, num_clients, num_examples)
    check_skew(skew, parameter)
    rng = generator(key)
    if skew == "lognormal":
        z = rng.normal(size=num_clients)
        logs = parameter * (z - z.max())  # the largest share is then 1, so that none overflows
        shares = np.exp(logs)
    elif skew == "power_law":
        shares = (1.0 + rng.permutation(num_clients)) ** -parameter
    else:
        shares = rng.dirichlet(np.full(num_clients, float(parameter)))
    exact = (num_examples - num_clients * min_examples) * (shares / shares.sum())
    sizes = np.floor(exact).astype(int)
    left = num_examples - num_clients * min_examples - sizes.sum()
    sizes[np.argsort(sizes - exact, kind="stable")[:left]] += 1
    cuts = np.cumsum(sizes + min_examples)[:-1]
    return deal(np.split(rng.permutation(num_examples), cuts))


def check_skew(skew: str, parameter: Any, name: str = "parameter") -> None:
    """Refuses a law that is none of `SKEWS`, or its parameter.

    Raises:
      ValueError: naming which.
    """
    if skew not in SKEWS:
        raise ValueError(f"skew must be one of {', '.join(SKEWS)}; got {skew!r}")
    if skew == "dirichlet":
        check_concentration(name, parameter, f" (of skew {skew})")
    else:
        check_number(name, parameter, lambda x: x >= 0, f"at least 0 (of skew {skew})")
