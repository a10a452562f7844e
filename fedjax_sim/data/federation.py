"""The type of a federation, and its checked construction on the host."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.core.checks import check_in_32_bits, has_values
from fedjax_sim.core.notebook import card
from fedjax_sim.core.types import Array, PyTree
from fedjax_sim.data.checks import (
    as_array,
    check_same_length,
    check_values,
    checked_names,
    checked_weights,
    path_name,
)
from fedjax_sim.data.sizes import padded_sizes
from fedjax_sim.data.source import Source
from fedjax_sim.data.window import rows_of


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["examples", "offsets", "num_examples", "client_weights"],
    meta_fields=["max_num_examples", "padded_sizes", "client_names", "num_examples_of_all"],
)
@dataclass(frozen=True, repr=False)
class FederatedData:
    """A whole federation of K clients, flat and client-contiguous: nothing is padded.

    Client k's examples are rows `offsets[k] : offsets[k] + num_examples[k]` of every
    leaf. A client may have no examples: it then never reports.

    Build one with `from_clients` or `from_arrays`, which check what they are given.
    """

    examples: PyTree  # leaves [N, ...], N = sum of n_k
    offsets: Array  # Int[K]
    num_examples: Array  # Int[K], n_k
    client_weights: Array  # Float[K], p_k up to scale; n_k unless said otherwise
    max_num_examples: int  # static
    # Static, rising, the last is the largest client's: what a full batch is padded to, each to the
    # first that holds it. () for the largest alone.
    padded_sizes: tuple[int, ...] = ()
    # Static: client k's name, so that a test set's clients can be told from a training set's. No
    # round looks at them. None for none.
    client_names: tuple[str, ...] | None = None
    # Static: N of the federation that this is a window of, since the rows do not say; None for a
    # whole one.
    num_examples_of_all: int | None = None

    @property
    def num_clients(self) -> int:
        """K."""
        return self.num_examples.shape[0]

    @property
    def total_num_examples(self) -> int:
        """N, the sum of n_k over all clients, those outside of a window included."""
        if self.num_examples_of_all is not None:
            return self.num_examples_of_all
        return jax.tree.leaves(self.examples)[0].shape[0]

    def __repr__(self) -> str:
        leaves = jax.tree_util.tree_flatten_with_path(self.examples)[0]
        rows = ", ".join(f"{path_name(p)}: {x.dtype}{list(x.shape)}" for p, x in leaves)
        return (
            f"FederatedData({self.num_clients} clients, {rows}, "
            f"largest client {self.max_num_examples})"
        )

    def _repr_html_(self) -> str:
        leaves = jax.tree_util.tree_flatten_with_path(self.examples)[0]
        facts: dict[str, Any] = {"clients": self.num_clients, "examples": self.total_num_examples}
        if has_values(self.num_examples):
            sizes = np.asarray(self.num_examples)
            low, median, high = np.quantile(sizes, (0, 0.5, 1))
            facts["examples of a client"] = f"{low:,.0f} to {high:,.0f}, median {median:,.0f}"
        facts |= {path_name(path): f"{x.dtype}{list(x.shape)}" for path, x in leaves}
        return card("FederatedData", facts)

    @classmethod
    def from_clients(
        cls,
        clients: Sequence[PyTree],
        client_weights: Any | None = None,
        *,
        client_names: Iterable[str] | None = None,
    ) -> Self:
        """A federation from one pytree of arrays `[n_k, ...]` for each client.

        Args:
          clients: K pytrees of the same structure; within a client every leaf has the
            same length n_k, which may be 0.
          client_weights: Float[K], p_k up to scale; None for n_k.
          client_names: K different texts; None for none.

        Raises:
          ValueError: if the clients differ in structure, dtype or trailing shape, a
            client's leaves differ in length, no client has an example, a value is NaN
            or infinite, a weight is negative or not finite, or names are not one a client.

        >>> data = FederatedData.from_clients([{"x": np.ones(2)}, {"x": np.ones(1)}])
        >>> data
        FederatedData(2 clients, ['x']: float32[3], largest client 2)
        """
        if not isinstance(clients, (list, tuple)):
            raise ValueError(
                "clients must be a list with one pytree of arrays for each client; got "
                f"{type(clients).__name__}"
            )
        if len(clients) == 0:
            raise ValueError("clients must hold at least one client; got none")
        flat: list[list[np.ndarray]] = []
        first_paths, _ = jax.tree_util.tree_flatten_with_path(clients[0])
        treedef: Any = jax.tree.structure(clients[0])
        names = [path_name(path) for path, _ in first_paths]
        for k, client in enumerate(clients):
            leaves, structure = jax.tree.flatten(client)
            if structure != treedef:
                raise ValueError(
                    "clients must all have the structure of client 0: "
                    f"got {structure} for client {k}, and {treedef} for client 0"
                )
            flat.append(
                [as_array(x, f"{n} of client {k}") for n, x in zip(names, leaves, strict=True)]
            )
            check_same_length(flat[-1], names, f" of client {k}")
        # A client without examples is not compared, so its arrays may be of any type and shape.
        first_with_examples = next((k for k, leaves in enumerate(flat) if len(leaves[0])), 0)
        for k, leaves in enumerate(flat):
            for name, x, x0 in zip(names, leaves, flat[first_with_examples], strict=True):
                if len(x) and (x.shape[1:] != x0.shape[1:] or x.dtype != x0.dtype):
                    raise ValueError(
                        f"{name} must have one dtype and one shape behind its first axis: "
                        f"got {x.dtype}{list(x.shape)} for client {k}, and "
                        f"{x0.dtype}{list(x0.shape)} for client {first_with_examples}"
                    )
        sizes = np.array([len(leaves[0]) for leaves in flat])
        columns = [
            np.concatenate([x for x in column if len(x)] or column[:1])
            for column in zip(*flat, strict=True)
        ]
        kept_names = checked_names(client_names, len(sizes))
        return cls._build(
            columns, names, treedef, sizes, client_weights=client_weights, client_names=kept_names
        )

    @classmethod
    def from_arrays(
        cls,
        examples: PyTree,
        client_ids: Any,
        num_clients: int | None = None,
        client_weights: Any | None = None,
        *,
        client_names: Iterable[str] | None = None,
    ) -> Self:
        """A federation from arrays `[N, ...]` and the client each row belongs to.

        Args:
          examples: a pytree of arrays of one length N.
          client_ids: Int[N], as `fs.partition.*` returns. Rows of one client keep
            their order.
          num_clients: K; None for the number of client_names, or else the largest id plus one.
          client_weights: Float[K], p_k up to scale; None for n_k.
          client_names: K different texts, as `Dataset.client_names`; None for none.

        Raises:
          ValueError: if lengths differ, an id is not in `[0, num_clients)`, there is
            no example, a value is NaN or infinite, a weight is negative or not finite, or names
            are not one a client.

        >>> FederatedData.from_arrays({"x": np.ones((3, 2))}, [1, 0, 1])
        FederatedData(2 clients, ['x']: float32[3, 2], largest client 2)
        """
        paths, treedef = jax.tree_util.tree_flatten_with_path(examples)
        names = [path_name(path) for path, _ in paths]
        leaves = [as_array(x, n) for n, (_, x) in zip(names, paths, strict=True)]
        check_same_length(leaves, names, "")
        try:
            ids = np.asarray(client_ids)
        except ValueError:
            raise ValueError(
                "client_ids must be integers, the client of each example; got a ragged list "
                "(for lists of rows by client use from_clients)"
            ) from None
        if ids.shape != leaves[0].shape[:1]:
            raise ValueError(
                f"client_ids must have one entry for each of the {len(leaves[0])} examples; "
                f"got shape {ids.shape}"
            )
        if ids.size == 0:
            raise ValueError("examples must hold at least one example; got none")
        if not np.issubdtype(ids.dtype, np.integer):
            raise ValueError(f"client_ids must be integers; got {ids.dtype}")
        kept_names = checked_names(client_names, num_clients)
        if num_clients is None:
            num_clients = int(ids.max()) + 1 if kept_names is None else len(kept_names)
        check_in_32_bits("num_clients must be", num_clients)
        wrong = np.flatnonzero((ids < 0) | (ids >= num_clients))
        if wrong.size:
            raise ValueError(
                f"client_ids must lie in [0, {num_clients}); got {ids[wrong[0]]} at row {wrong[0]}"
            )
        sizes = np.bincount(ids, minlength=num_clients)
        if (np.diff(ids) < 0).any():  # rows that are already in order are not copied
            order = np.argsort(ids, kind="stable")
            leaves = [x[order] for x in leaves]
        return cls._build(
            leaves, names, treedef, sizes, client_weights=client_weights, client_names=kept_names
        )

    @classmethod
    def window(cls, source: Source, client_ids: Any, capacity: int) -> Self:
        """The same federation with the examples of some clients alone, as those of one cohort.

        For data larger than memory: a round of these clients gives the bits that it gives with all
        examples, and windows of one capacity share one compiled round. Here the clients outside
        have no examples, so that they never report; K, all weights and whatever else depends on the
        whole federation are those of the source.

        Args:
          source: what reads the examples of clients.
          client_ids: Int[c], in [0, K), those of a cohort; repeated ones are read once.
          capacity: rows, at least the examples of these clients together.

        Raises:
          ValueError: for ids out of range, more examples than the capacity, and for what the source
            reads if it is not of its spec, of other numbers than it says, or not finite.

        >>> whole = FederatedData.from_clients([np.ones(2), np.ones(3), np.ones(1)])
        >>> window = FederatedData.window(Source.of(whole), [2, 0], capacity=4)
        >>> window.num_examples.tolist(), window.client_weights.tolist()
        ([2, 0, 1], [2.0, 3.0, 1.0])
        """
        examples, offsets, sizes = rows_of(source, client_ids, capacity)
        return cls(
            examples=jax.tree.map(jnp.asarray, examples),
            offsets=jnp.asarray(offsets, jnp.int32),
            num_examples=jnp.asarray(sizes, jnp.int32),
            client_weights=jnp.asarray(source.client_weights, jnp.result_type(float)),
            max_num_examples=source.max_num_examples,
            padded_sizes=source.padded_sizes,
            client_names=source.client_names,
            num_examples_of_all=source.total_num_examples,
        )

    @classmethod
    def _build(
        cls,
        columns: list[np.ndarray],
        names: list[str],
        treedef: Any,
        sizes: np.ndarray,
        *,
        client_weights: Any | None,
        client_names: tuple[str, ...] | None,
    ) -> Self:
        if sizes.sum() == 0:
            raise ValueError("a federation needs at least one example; all clients are empty")
        check_in_32_bits("a federation holds", sizes.sum(), " examples")
        offsets = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        for name, x in zip(names, columns, strict=True):
            check_values(x, name, offsets)
        weights = checked_weights(client_weights, sizes)
        return cls(
            examples=jax.tree.unflatten(treedef, [jnp.asarray(x) for x in columns]),
            offsets=jnp.asarray(offsets, jnp.int32),
            num_examples=jnp.asarray(sizes, jnp.int32),
            client_weights=jnp.asarray(weights, jnp.result_type(float)),
            max_num_examples=int(sizes.max()),
            padded_sizes=padded_sizes(sizes),
            client_names=client_names,
        )


def check_data(data: Any, name: str = "data") -> FederatedData:
    """The federation; refuses what is none in memory.

    Raises:
      ValueError: naming the argument, and saying how to make one.
    """
    if isinstance(data, Source):
        raise ValueError(
            f"{name} must be an fs.FederatedData, with its examples in memory; got a Source, which "
            "fs.simulate trains on, and of whose clients fs.FederatedData.window holds some"
        )
    if not isinstance(data, FederatedData):
        raise ValueError(
            f"{name} must be an fs.FederatedData; got "
            f"{type(data).__name__} (a plain data set is a federation of one client: "
            "fs.FederatedData.from_clients([examples]))"
        )
    return data
