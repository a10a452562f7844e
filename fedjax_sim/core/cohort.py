"""The cohort of a round as arrays, checked."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.core.checks import is_concrete
from fedjax_sim.core.types import Array, Cohort


def as_arrays(cohort: Cohort, num_clients: int, stateful: bool) -> tuple[Cohort, Array, Array]:
    """Checks a cohort; returns it with arrays in all fields given, its mask and its reports.

    Types and shapes are always checked, values only where they are concrete: inside a trace, ids
    out of range are padding and `work` is clipped to [0, 1].

    Raises:
      ValueError: naming the field, what was given and what is allowed.
    """
    if not isinstance(cohort, Cohort):
        raise ValueError(f"cohort must be an fs.Cohort; got {type(cohort).__name__}")
    given_ids = cohort.client_ids
    cohort = cohort._replace(client_ids=_in_32_bits(given_ids, num_clients))
    fields = [None if x is None else jnp.asarray(x) for x in cohort]
    if fields[0] is None or fields[0].ndim != 1 or fields[0].shape[0] == 0:
        raise ValueError(
            "cohort.client_ids must have shape (m,) with m >= 1; got "
            f"{None if fields[0] is None else fields[0].shape}"
        )
    ids = fields[0]
    kinds = (jnp.integer, *2 * [jnp.bool_], *3 * [jnp.number], jnp.bool_)
    for name, kind, value in zip(cohort._fields, kinds, fields, strict=True):
        if value is None:
            continue
        if value.shape != ids.shape:
            raise ValueError(
                f"cohort.{name} must have shape {ids.shape}, as client_ids; got {value.shape}"
            )
        if not jnp.issubdtype(value.dtype, kind):
            says = {jnp.integer: "integers", jnp.bool_: "booleans", jnp.number: "numbers"}[kind]
            raise ValueError(f"cohort.{name} must be {says}; got {value.dtype}")
    arrays = Cohort(ids.astype(jnp.int32), *fields[1:])
    mask = jnp.ones(ids.shape, bool) if arrays.mask is None else arrays.mask
    reports = mask if arrays.reports is None else mask & arrays.reports
    arrays = arrays._replace(mask=mask, reports=reports)
    if cohort.partial is not None and cohort.deadline is None:
        raise ValueError("cohort.partial must come with cohort.deadline; got partial alone")
    if all(x is None or is_concrete(x) for x in arrays):
        _check_values(arrays._replace(client_ids=given_ids), num_clients, stateful)
    return arrays, mask, reports


def _in_32_bits(ids: Any, num_clients: int) -> Any:
    """The ids as 32 bits; those out of range are -1, because a cast could make them a client's."""
    is_known = all(is_concrete(x) for x in jax.tree.leaves(ids))
    arrays: Any = np if is_known else jnp
    wide = arrays.asarray(ids) if ids is not None else None
    if wide is None or wide.dtype not in (np.int64, np.uint64):
        return ids
    return arrays.where((wide >= 0) & (wide < num_clients), wide, -1).astype(np.int32)


def _check_values(cohort: Cohort, num_clients: int, stateful: bool) -> None:
    mask = np.asarray(cohort.mask)
    ids = np.asarray(cohort.client_ids)[mask]
    if ids.size and not (ids.min() >= 0 and ids.max() < num_clients):
        wrong = ids[(ids < 0) | (ids >= num_clients)][0]
        raise ValueError(f"cohort.client_ids must lie in [0, {num_clients}); got {wrong}")
    if stateful and len(np.unique(ids)) != len(ids):
        values, counts = np.unique(ids, return_counts=True)
        raise ValueError(
            "cohort.client_ids must not repeat a client where the algorithm keeps client state; "
            f"got client {values[counts > 1][0]} {counts.max()} times"
        )
    if cohort.inclusion is not None:
        inclusion = np.asarray(cohort.inclusion)[mask]
        if not (np.isfinite(inclusion).all() and (inclusion > 0).all()):
            raise ValueError(f"cohort.inclusion must be positive; got {inclusion.min()}")
    if cohort.work is not None:
        work = np.asarray(cohort.work)[mask]
        if not ((work >= 0) & (work <= 1)).all():
            raise ValueError(
                f"cohort.work must lie in [0, 1]; got values from {work.min()} to {work.max()}"
            )
    if cohort.deadline is not None:
        deadline = np.asarray(cohort.deadline)[mask]
        if not (deadline > 0).all():
            raise ValueError(f"cohort.deadline must be positive; got {deadline.min()}")
