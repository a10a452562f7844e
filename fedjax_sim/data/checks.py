"""Checks of a federation's arrays, values, weights and names, on the host."""

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.core.checks import is_concrete

if TYPE_CHECKING:
    from fedjax_sim.data.federation import FederatedData

_ORDINARY = 64  # weights whose sum is between 2^-64 and 2^64 are not rescaled


def checked_weights(client_weights: Any | None, sizes: np.ndarray) -> np.ndarray:
    """Float64[K]: the weights, by default the sizes, times a power of two; or a refusal.

    Raises:
      ValueError: for weights that are not finite, negative, of another number than the clients, or
        too far apart.
    """
    if client_weights is None:
        return sizes.astype(np.float64)
    weights = np.asarray(client_weights, np.float64)
    if weights.shape != sizes.shape:
        raise ValueError(
            f"client_weights must have shape ({len(sizes)},), one for each client; "
            f"got {weights.shape}"
        )
    if not np.isfinite(weights).all() or (weights < 0).any() or not weights.any():
        raise ValueError(
            "client_weights must be finite and not negative, with a positive sum; "
            f"got values from {weights.min()} to {weights.max()}"
        )
    weights = _in_range(weights)
    limits = np.finfo(jax.dtypes.canonicalize_dtype(np.float64))
    small = weights[(weights > 0) & (weights < limits.tiny)]
    if small.size:
        raise ValueError(
            f"client_weights must fit {limits.dtype} beside each other: the smallest that is "
            f"not 0 is {small.min() / weights.sum():.3g} of their sum; at least "
            f"{limits.tiny:.3g} is kept"
        )
    return weights


def _in_range(weights: np.ndarray) -> np.ndarray:
    """The weights, or where their sum is far from 1 that times a power of two, about their sum.

    Only their ratios matter, and these a power of two leaves as they are, to the bit.
    """
    largest = int(np.frexp(weights.max())[1])
    exponent = largest + int(np.frexp(np.ldexp(weights, -largest).sum())[1])
    return weights if abs(exponent) <= _ORDINARY else np.ldexp(weights, -exponent)


class ClientNames(tuple[str, ...]):
    """A tuple that is hashed once: each call of a compiled function asks for the hash of what is
    static in its arguments, which of 10^6 names takes 10 ms."""

    def __hash__(self) -> int:
        if "_hash" not in self.__dict__:
            self._hash = super().__hash__()
        return self._hash

    def __reduce__(self) -> tuple[Any, ...]:
        # Without the hash, because another process has other hashes of the same texts.
        return type(self), (tuple(self),)


def checked_names(names: Iterable[str] | None, num_clients: int | None) -> ClientNames | None:
    """The names as a tuple; None for none.

    Args:
      num_clients: K; None where the names say how many there are.

    Raises:
      ValueError: for what is not K different texts.
    """
    if names is None:
        return None
    is_list = isinstance(names, Iterable) and not isinstance(names, str)
    if isinstance(names, ClientNames) and num_clients in (None, len(names)):
        return names  # they were looked at before
    listed = ClientNames(names) if is_list else ClientNames()
    wrong = [name for name in listed if not isinstance(name, str)]
    if wrong or not is_list:
        wrong_text = f"{wrong[0]!r} among them" if is_list else repr(names)
        raise ValueError(
            f"client_names must be a list of texts, one for each client; got {wrong_text}"
        )
    if num_clients is not None and len(listed) != num_clients:
        raise ValueError(
            f"client_names must be one for each of the {num_clients} clients; got {len(listed)}"
        )
    if len(set(listed)) != len(listed):
        repeated = next(name for name, count in Counter(listed).items() if count > 1)
        raise ValueError(f"client_names must differ; {repeated!r} is there more than once")
    return listed


def check_whole(data: "FederatedData", name: str, instead: str = "") -> None:
    """Refuses a window, whose rows need not all be examples.

    Args:
      instead: advice for the message.

    Raises:
      ValueError: naming the argument.
    """
    if data.num_examples_of_all is not None:
        rows = jax.tree.leaves(data.examples)[0].shape[0]
        cure = f": {instead}" if instead else ""
        raise ValueError(
            f"{name} must hold all its examples; got a window of {rows} rows on a federation of "
            f"{data.num_examples_of_all}{cure}"
        )


def path_name(path: Any) -> str:
    """The name of a leaf of the examples in messages."""
    return jax.tree_util.keystr(path) or "examples"


def as_array(x: Any, name: str) -> np.ndarray:
    """The leaf as an array of NumPy.

    Raises:
      ValueError: for a traced one, a scalar, or what is no numbers.
    """
    if not is_concrete(x):
        raise ValueError(f"{name} must be a concrete array: build the federation outside jit")
    array = np.asarray(x)
    if array.ndim == 0:
        raise ValueError(
            f"{name} must have a first axis over examples; got the scalar {x!r} "
            "(lists are pytrees here: pass arrays)"
        )
    numeric = np.issubdtype(array.dtype, np.number) or array.dtype == bool
    if not numeric and not jnp.issubdtype(array.dtype, jnp.floating):  # bfloat16 is not np.number
        raise ValueError(f"{name} must be numbers; got {array.dtype}")
    # Big-endian numbers, as files of some formats have them, are those of this machine to JAX.
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def check_same_length(leaves: list[np.ndarray], names: list[str], where: str) -> None:
    """Refuses leaves of several lengths.

    Args:
      where: of whom they are, for messages.
    """
    if not leaves:
        raise ValueError(f"examples{where} must hold at least one array; got none")
    for name, x in zip(names, leaves, strict=True):
        if len(x) != len(leaves[0]):
            raise ValueError(
                f"all leaves{where} must have the same length: got {len(x)} for {name}, "
                f"and {len(leaves[0])} for {names[0]}"
            )


def check_values(
    x: np.ndarray, name: str, offsets: np.ndarray, client_ids: np.ndarray | None = None
) -> None:
    """Refuses numbers that are not finite, or integers that JAX would wrap round.

    Args:
      offsets: Int[K], the first row of each client.
      client_ids: Int[K], what the clients are called; None for 0 to K - 1.
    """
    kept_dtype = jax.dtypes.canonicalize_dtype(x.dtype)  # 32 bits unless JAX is told otherwise
    if jnp.issubdtype(x.dtype, jnp.inexact):
        with np.errstate(over="ignore"):
            finite = np.isfinite(x.astype(kept_dtype, copy=False)).reshape(len(x), -1).all(axis=1)
        if not finite.all():
            row = int(np.flatnonzero(~finite)[0])
            client = int(np.searchsorted(offsets, row, side="right")) - 1
            called = client if client_ids is None else client_ids[client]
            raise ValueError(
                f"{name} must be finite in {kept_dtype}: {(~finite).sum()} examples hold NaN or "
                f"infinity, first example {row - int(offsets[client])} of client {called}"
            )
    elif kept_dtype != x.dtype and x.size:  # JAX's cast would wrap a large label round
        limits = np.iinfo(kept_dtype)
        if x.max() > limits.max or x.min() < limits.min:
            raise ValueError(
                f"{name} must fit {kept_dtype}, which JAX keeps; "
                f"got values from {x.min()} to {x.max()}"
            )
