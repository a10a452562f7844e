"""A federation whose examples are elsewhere, as on a disk, and what reads those of some clients."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.core.reprs import fields_of
from fedjax_sim.core.trees import num_bytes, shapes_with
from fedjax_sim.core.types import PyTree
from fedjax_sim.data.checks import check_whole, checked_names, checked_weights
from fedjax_sim.data.sizes import padded_sizes

if TYPE_CHECKING:
    from fedjax_sim.data.federation import FederatedData

_SAMPLED = 3  # clients whose examples are looked at before a run begins


@dataclass(frozen=True, eq=False, repr=False)
class Source:
    """A federation of which the examples are elsewhere, as on a disk.

    `fs.simulate` trains on it as on a federation in memory: `Experiment(data=source)`. A window on
    some clients is `FederatedData.window`.

    What tells it from another one, for a resume, are all sizes, weights and names, the spec, the
    examples of three clients, and `identity`. That the other clients have other examples is not
    seen: where that may happen, as with files that are written anew, `identity` should tell.

    Attributes:
      num_examples: Int[K], n_k, of all clients.
      spec: one example's shapes and dtypes, a pytree of `jax.ShapeDtypeStruct`.
      read: ids -> the examples of each, a list of c pytrees of arrays `[n_k, ...]`; the ids are
        Int[c], rising, each once. It must read the same at every call, since the runs of one key
        would differ else, and is called in a thread of its own while rounds are trained.
      weights: Float[K], p_k up to scale; None for n_k.
      client_names: K different texts; None for none.
      identity: which examples these are, as a checksum or a version of the files; None if nothing
        is known of them but what is read.

    Raises:
      ValueError: for sizes that are none or hold no example, weights or names that do not fit, or
        an identity that is no text.

    >>> def read(ids):  # a client's examples are n_k times its number
    ...     return [np.full(k + 1, k, np.float32) for k in ids]
    >>> source = Source(np.arange(4) + 1, jax.ShapeDtypeStruct((), np.float32), read)
    >>> source.total_num_examples, source.read(np.array([1]))[0].tolist()
    (10, [1.0, 1.0])
    """

    num_examples: np.ndarray
    spec: PyTree
    read: Callable[[np.ndarray], Sequence[PyTree]]
    weights: np.ndarray | None = None
    client_names: tuple[str, ...] | None = None
    identity: str | None = None

    def __post_init__(self) -> None:
        sizes = np.asarray(self.num_examples)
        if sizes.ndim != 1 or not np.issubdtype(sizes.dtype, np.integer) or (sizes < 0).any():
            raise ValueError(
                "num_examples must be whole numbers, at least 0, one for each client; got "
                f"{sizes.dtype} of shape {sizes.shape}"
            )
        if not sizes.any():
            raise ValueError("num_examples must hold at least one example; all clients are empty")
        checked_weights(self.weights, sizes)
        # A tuple, since it is static in what is compiled for a window.
        names = checked_names(self.client_names, len(sizes))
        object.__setattr__(self, "client_names", names)
        if self.identity is not None and not isinstance(self.identity, str):
            raise ValueError(f"identity must be a text, or None; got {self.identity!r}")

    def __repr__(self) -> str:
        return fields_of(self)

    @classmethod
    def of(cls, data: "FederatedData") -> "Source":
        """A federation in memory as a source.

        Raises:
          ValueError: for a window, which does not know the sizes of the clients outside.
        """
        check_whole(data, "data")
        examples = jax.tree.map(np.asarray, data.examples)
        starts, sizes = np.asarray(data.offsets), np.asarray(data.num_examples)

        def read(ids: np.ndarray) -> list[PyTree]:
            return [
                jax.tree.map(lambda x, k=k: x[starts[k] : starts[k] + sizes[k]], examples)
                for k in ids
            ]

        return cls(
            num_examples=sizes,
            spec=shapes_with(examples),
            read=read,
            weights=np.asarray(data.client_weights),
            client_names=data.client_names,
        )

    @cached_property
    def client_weights(self) -> np.ndarray:
        """Float[K]."""
        return checked_weights(self.weights, np.asarray(self.num_examples))

    @cached_property
    def padded_sizes(self) -> tuple[int, ...]:
        """As those of the whole federation."""
        return padded_sizes(np.asarray(self.num_examples))

    @property
    def num_clients(self) -> int:
        """K."""
        return len(self.num_examples)

    @cached_property
    def max_num_examples(self) -> int:
        """Of the largest client."""
        return int(np.max(self.num_examples))

    @cached_property
    def total_num_examples(self) -> int:
        """N."""
        return int(np.sum(self.num_examples))

    @property
    def nbytes(self) -> int:
        """Bytes of the examples in memory, with the types that JAX keeps."""
        return num_bytes(self._kept_examples)

    @cached_property
    def in_memory(self) -> "FederatedData":
        """The federation, all of it read; kept as long as the source is.

        Raises:
          ValueError: as `FederatedData.from_clients`.
        """
        from fedjax_sim.data.federation import FederatedData  # which has windows of sources

        with jax.ensure_compile_time_eval():  # values, also where it is first asked for in a trace
            clients = self.read(np.arange(len(self.num_examples)))
            names = self.client_names
            return FederatedData.from_clients(list(clients), self.weights, client_names=names)

    @cached_property
    def sample(self) -> list[PyTree]:
        """The examples of three clients that have any, the first, the middle and the last of them;
        read once.

        Raises:
          ValueError: for what is not of the spec; what `read` raises.
        """
        from fedjax_sim.data.window import read_rows  # here: it imports this file

        sizes = np.asarray(self.num_examples)
        non_empty = np.flatnonzero(sizes)
        places = np.linspace(0, len(non_empty) - 1, _SAMPLED).astype(np.int64)
        return [
            read_rows(self, np.array([k]), int(sizes[k]))
            for k in non_empty[np.unique(places)].tolist()
        ]

    @cached_property
    def without_examples(self) -> "FederatedData":
        """The federation with the shapes of its examples, `jax.ShapeDtypeStruct` [N, ...], in their
        place, and no offsets; K, sizes, weights and names are there."""
        from fedjax_sim.data.federation import FederatedData  # which has windows of sources

        offsets: Any = jax.ShapeDtypeStruct((len(self.num_examples),), jnp.int32)
        with jax.ensure_compile_time_eval():  # values, also where it is first asked for in a trace
            return FederatedData(
                examples=self._kept_examples,
                offsets=offsets,
                num_examples=jnp.asarray(self.num_examples, jnp.int32),
                client_weights=jnp.asarray(self.client_weights, jnp.result_type(float)),
                max_num_examples=self.max_num_examples,
                padded_sizes=self.padded_sizes,
                client_names=self.client_names,
            )

    @property
    def _kept_examples(self) -> PyTree:
        """The shapes of all examples, leaves [N, ...] of the types that JAX keeps."""

        def rows(leaf: Any) -> jax.ShapeDtypeStruct:
            dtype = jax.dtypes.canonicalize_dtype(leaf.dtype)
            return jax.ShapeDtypeStruct((self.total_num_examples, *leaf.shape), dtype)

        return jax.tree.map(rows, self.spec)
