"""Federations to check on, small and ragged, and the cohorts that a round must get right."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.core.reprs import fields_of
from fedjax_sim.core.types import Array, Cohort, LossFn, Params, PyTree
from fedjax_sim.data import FederatedData

SLOTS = 5  # of a cohort


class Problem(NamedTuple):
    """What is trained on.

    Attributes:
      loss_fn: (params, batch, key) -> losses[B].
      params: the first model.
      data: the federation; K >= 2. Without a client of no example and one of one, those cases are
        not looked at.
    """

    loss_fn: LossFn
    params: Params
    data: FederatedData

    def __repr__(self) -> str:
        return fields_of(self)


class Case(NamedTuple):
    """A cohort, and what it is like."""

    name: str
    cohort: Cohort


def linear_regression(seed: int = 0) -> Problem:
    """Eight clients of 5, 12, 0, 1, 7, 23, 3 and 9 examples, who disagree.

    The model is {"w": Float32[4], "b": Float32[]}, and the loss `(x w + b - y)^2`. Rates up to
    some 0.05 are stable.

    >>> linear_regression().data.num_examples.tolist()
    [5, 12, 0, 1, 7, 23, 3, 9]
    """
    rng = np.random.default_rng(seed)
    clients = []
    for size in (5, 12, 0, 1, 7, 23, 3, 9):
        x = rng.normal(size=(size, 4))
        y = x @ rng.normal(size=4) + rng.normal() + 0.1 * rng.normal(size=size)
        clients.append({"x": x.astype(np.float32), "y": y.astype(np.float32)})

    def loss_fn(params: Params, batch: PyTree, key: Array | None) -> Array:
        return (batch["x"] @ params["w"] + params["b"] - batch["y"]) ** 2

    first = rng.normal(size=5).astype(np.float32) / 4
    params = {"w": first[:4], "b": first[4]}
    return Problem(loss_fn, params, FederatedData.from_clients(clients))


def cases(data: FederatedData) -> list[Case]:
    """Cohorts in which somebody reports, the smallest first, all of as many slots."""
    sizes = np.asarray(data.num_examples)
    non_empty = [int(k) for k in np.argsort(sizes, kind="stable") if sizes[k]]
    several = non_empty[-SLOTS:]
    cohorts = {
        f"client {non_empty[0]} of {sizes[non_empty[0]]} examples alone": _cohort(non_empty[:1])
    }
    if len(non_empty) > 1:
        cohorts["two clients"] = _cohort([non_empty[-1], non_empty[0]])
        cohorts["two, with padding before and between"] = _cohort(
            [non_empty[0], non_empty[0], non_empty[-1], non_empty[-1]],
            mask=[False, True, False, True],
        )
        cohorts["several, ragged"] = _cohort(several)
        cohorts["two, of whom one drops out"] = _cohort(
            [non_empty[-1], non_empty[0]], reports=[True, False]
        )
        cohorts["stragglers"] = _cohort(several, work=[0.5, 1.0, 0.34, 1.0, 0.9][: len(several)])
    none = np.flatnonzero(sizes == 0)
    if len(none):
        cohorts["one client without an example"] = _cohort([int(none[0]), non_empty[-1]])
    return [Case(name, cohort) for name, cohort in cohorts.items()]


def empty_cases(data: FederatedData) -> list[Case]:
    """Cohorts of which nobody reports."""
    first = [0, 1]
    cohorts = {
        "nobody is given the model": _cohort(first, mask=[False, False]),
        "everybody drops out": _cohort(first, reports=[False, False]),
        "nobody completes a step": _cohort(first, work=[0.0, 0.0]),
    }
    none = np.flatnonzero(np.asarray(data.num_examples) == 0)
    if len(none):
        cohorts["only a client without examples"] = _cohort([int(none[0])])
    return [Case(name, cohort) for name, cohort in cohorts.items()]


def _cohort(
    ids: list[int],
    mask: list[bool] | None = None,
    reports: list[bool] | None = None,
    work: list[float] | None = None,
) -> Cohort:
    """Filled up by padding to the slots that all cohorts have."""
    fill = SLOTS - len(ids)
    mask = [True] * len(ids) if mask is None else mask
    reports = [True] * len(ids) if reports is None else reports
    work = [1.0] * len(ids) if work is None else work
    inclusion = [0.5, 0.25, 0.8, 0.5, 1.0]
    return Cohort(
        client_ids=jnp.array(ids + ids[:1] * fill, jnp.int32),
        mask=jnp.array(mask + [False] * fill),
        reports=jnp.array(reports + [True] * fill),
        inclusion=jnp.array(inclusion, jnp.float32),
        work=jnp.array(work + [1.0] * fill, jnp.float32),
    )


def over_all(cohort: Cohort, num_clients: int) -> Cohort:
    """The same clients, in a cohort of K slots of which theirs are not padding."""
    slots = np.flatnonzero(np.asarray(cohort.mask))
    ids = np.asarray(cohort.client_ids)[slots]

    def placed(values: Array | None, fill: float | bool) -> Array:
        own = np.asarray(values)
        whole = np.full(num_clients, fill, own.dtype)
        whole[ids] = own[slots]
        return jnp.asarray(whole)

    return Cohort(
        client_ids=jnp.arange(num_clients, dtype=jnp.int32),
        mask=placed(cohort.mask, False),
        reports=placed(cohort.reports, True),
        inclusion=placed(cohort.inclusion, 1.0),
        work=placed(cohort.work, 1.0),
    )


def other_padding(cohort: Cohort, data: FederatedData) -> Cohort:
    """The same cohort with other clients in its padding."""
    other = (cohort.client_ids + 1) % data.num_clients
    mask = jnp.asarray(cohort.mask)
    return cohort._replace(client_ids=jnp.where(mask, cohort.client_ids, other))


def reversed_cohort(cohort: Cohort) -> Cohort:
    """The slots in the other order."""
    return jax.tree.map(lambda x: x[::-1], cohort)
