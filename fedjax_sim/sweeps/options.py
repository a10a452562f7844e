"""The options of a sweep, and the plan that is made of them."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fedjax_sim.core.checks import check_count
from fedjax_sim.core.types import Array
from fedjax_sim.core.versions import versions
from fedjax_sim.execution.machine import free_memory, own_devices
from fedjax_sim.grid import Grid
from fedjax_sim.host.identity import program
from fedjax_sim.sweeps.checks import check_labels, check_names, label_of, takes_key
from fedjax_sim.sweeps.claims import LOST_SECONDS, Claims
from fedjax_sim.sweeps.models import check_keep
from fedjax_sim.sweeps.plan import Group, build, plan
from fedjax_sim.sweeps.shards import Shard
from fedjax_sim.sweeps.store import Store


class Options(NamedTuple):
    """The keyword arguments of `sweep`, but those that show progress."""

    out: str | Path | None = None
    resume: bool = False
    static: Sequence[str] = ()
    side_by_side: int | None = None
    memory_limit: float | None = None
    common_random_numbers: bool = True
    mesh: Mesh | None = None
    checkpoint_every: int | None = None
    keep_models: str | None = None
    metric: str | None = None
    configuration: Mapping[str, Any] | None = None
    shard: Shard | None = None


class Plan(NamedTuple):
    """A sweep that is checked, grouped, and of which the folder is open.

    Attributes:
      seeds: the labels of the keys.
      opaque: whether `experiment` is a function of the key that returns results.
      limit: bytes that a call may hold.
      store: the folder; None for none.
      shard: which of the processes that share the folder this one is; None for the only one.
    """

    experiment: Callable[..., Any]
    grid: Grid
    seeds: list[int]
    keys: Array
    opaque: bool
    mesh: Mesh
    limit: float
    groups: list[Group]
    store: Store | None
    checkpoint_every: int | None
    configuration: dict[str, Any]
    shard: Shard | None

    @property
    def num_runs(self) -> int:
        """Configurations times seeds."""
        return len(self.grid) * len(self.seeds)


def make_plan(
    experiment: Callable[..., Any], grid: Grid, seeds: list[int], keys: Array, options: Options
) -> Plan:
    """Checks the options, groups the configurations, and opens the folder.

    Raises:
      ValueError: as `sweep`.
    """
    configuration = dict(options.configuration or {})
    opaque = takes_key(experiment)
    check_names(experiment, grid, options.static, opaque)
    check_labels(grid, opaque)
    options = _checked(options, opaque)
    mesh = options.mesh
    if mesh is None:
        mesh = Mesh(np.array(jax.local_devices()), ("runs",))
    if len(mesh.axis_names) != 1:
        raise ValueError(f"mesh must have one axis; got {mesh.axis_names}")
    if len(own_devices(mesh)) < mesh.size:
        raise ValueError(
            "mesh must be of devices of this process, as jax.local_devices(), since several "
            "processes share a sweep by shard; got devices of several"
        )
    limit = options.memory_limit
    if limit is None:
        limit = free_memory([*mesh.devices.flat]) / 2
    store = None if options.out is None else Store(Path(options.out))
    joins = options.shard is not None
    widths = store.widths() if store is not None and (options.resume or joins) else None

    def groups_of(widths: list[int] | None) -> list[Group]:
        return plan(
            experiment,
            grid,
            keys,
            devices=mesh.size,
            limit=limit,
            static=options.static,
            opaque=opaque,
            common_random_numbers=options.common_random_numbers,
            side_by_side=options.side_by_side if widths is None else widths,
            keep_models=options.keep_models,
            metric=options.metric,
            shards=1 if options.shard is None else options.shard.shards,
        )

    groups = groups_of(widths)
    if store is not None:
        identity = {
            "names": list(grid.names),
            "grid": [[label_of(value) for value in values.values()] for values in grid],
            "seeds": seeds,
            "keys": np.asarray(jax.random.key_data(keys)).tolist(),
            "common_random_numbers": options.common_random_numbers,
            "devices": mesh.size,
            "groups": [_facts(experiment, grid, group, keys[0], opaque) for group in groups],
            "configuration": configuration,
            "keep_models": options.keep_models,
            "metric": options.metric,
            "versions": versions(),
        }
        chosen = [group.side_by_side for group in groups]
        if not joins:
            _check_nobody_works(store)
            store.open(identity, chosen, options.resume)
        elif (begun := store.join(identity, chosen)) != chosen:
            groups = groups_of(begun)
    return Plan(
        experiment=experiment,
        grid=grid,
        seeds=seeds,
        keys=keys,
        opaque=opaque,
        mesh=mesh,
        limit=limit,
        groups=groups,
        store=store,
        checkpoint_every=options.checkpoint_every,
        configuration=configuration,
        shard=options.shard,
    )


def _checked(options: Options, opaque: bool) -> Options:
    """The options with Python integers; refuses those that cannot be, whatever the experiment.

    Raises:
      ValueError: naming the argument, what was given and what is allowed.
    """
    side_by_side, every = options.side_by_side, options.checkpoint_every
    if side_by_side is not None:
        side_by_side = check_count("side_by_side", side_by_side, ", or None")
        if side_by_side > 1 and not options.common_random_numbers:
            raise ValueError(
                f"side_by_side must be 1 without common random numbers; got {side_by_side}"
            )
    if every is not None:
        every = check_count("checkpoint_every", every, ", or None")
    if options.memory_limit is not None and not options.memory_limit > 0:
        raise ValueError(f"memory_limit must be positive; got {options.memory_limit}")
    check_keep(options.keep_models, options.metric, opaque, options.out is not None)
    if options.resume and options.out is None:
        raise ValueError("resume needs out, the folder to go on from; got None")
    if options.shard is not None and options.out is None:
        raise ValueError("shard needs out, the folder that all shards share; got None")
    return options._replace(side_by_side=side_by_side, checkpoint_every=every)


def _check_nobody_works(store: Store) -> None:
    """Refuses to work alone in a folder where shards are at work.

    Raises:
      ValueError: naming one of them.
    """
    alive = Claims(store.folder.claims).alive()
    if alive:
        raise ValueError(
            f"out {store.folder.path} holds {len(alive)} batch{'es' * (len(alive) > 1)} that "
            f"{'shards are' if len(alive) > 1 else 'a shard is'} computing, as "
            f'{next(iter(alive.values()))}; join them with shard, as "1/1", or wait: a claim of '
            f"one that was killed on another machine ends after {LOST_SECONDS:.0f} s"
        )


def _facts(
    experiment: Callable[..., Any], grid: Grid, group: Group, key: Array, opaque: bool
) -> dict[str, Any]:
    """The values of a group that a resume must find the same."""
    first = grid.configurations[group.indices[0]]

    def make(key: Array, **hyper: Array) -> Any:
        return build(experiment, {**group.static, **hyper}, key, opaque)

    hyper = {name: jnp.asarray(first[name], float) for name in group.traced}
    return {**group.facts, "program": program(make, key, hyper)}
