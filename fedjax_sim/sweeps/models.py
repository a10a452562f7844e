"""The models of runs that a sweep keeps, on the host."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.core.types import Params, PyTree
from fedjax_sim.host.keeping import Keep
from fedjax_sim.results.trained import KEPT, save_trained, trained_params
from fedjax_sim.sweeps.plan import Group
from fedjax_sim.training.experiment import Experiment


class Model(NamedTuple):
    """A run's model on the host; value and round are NumPy's, None for a final model's."""

    params: Params
    value: Any
    round: Any


def check_keep(keep_models: str | None, metric: str | None, opaque: bool, has_out: bool) -> None:
    """Checks `keep_models` and `metric`, as far as that does not depend on the experiment.

    Raises:
      ValueError: naming the argument, what was given and what is allowed.
    """
    if keep_models is None:
        if metric is not None:
            raise ValueError(
                f'metric is what keep_models="best" goes by; got metric={metric!r} without it'
            )
        return
    if keep_models not in KEPT:
        raise ValueError(f"keep_models must be None, {' or '.join(KEPT)}; got {keep_models!r}")
    if metric is not None and keep_models != "best":
        raise ValueError(
            f'metric is what keep_models="best" goes by; got metric={metric!r} and '
            f"keep_models={keep_models!r}"
        )
    if opaque:
        raise ValueError(
            "keep_models needs an experiment that returns an fs.Experiment; a function of (key, "
            "hyper-parameters) may return its params itself"
        )
    if not has_out:
        raise ValueError("keep_models needs out, the folder where models are kept; got None")


def on_host(keep: Keep, experiment: Experiment, carry: PyTree) -> list[Model]:
    """The models of a batch's runs.

    Args:
      carry: leaves [devices, side by side, ...], after the last round.
    """
    if keep.kept == "best":
        _, best = carry
        model = Model(*best)
    else:

        def final(carry: PyTree) -> Params:
            return trained_params(experiment.state_of(jnp.int32(0), carry))

        model = Model(jax.vmap(jax.vmap(final))(carry), None, None)
    flat = jax.tree.map(lambda x: np.asarray(x).reshape(-1, *x.shape[2:]), model)
    count = len(jax.tree.leaves(flat)[0])
    return [jax.tree.map(lambda x, i=i: x[i], flat) for i in range(count)]


def save_model(
    path: Path, model: Model, group: Group, seed: int, configuration: Mapping[str, Any]
) -> None:
    """Writes a run's model where `fs.load` finds it.

    Args:
      configuration: the sweep's labels and the run's hyper-parameters.

    Raises:
      SaveError: if it cannot be written.
    """
    assert group.keep is not None
    assert group.num_rounds is not None
    path.parent.mkdir(exist_ok=True)
    final = model.round is None
    save_trained(
        path,
        model.params,
        configuration=configuration,
        seed=seed,
        round=group.num_rounds if final else int(model.round),
        num_rounds=group.num_rounds,
        status="finished",
        kept=group.keep.kept,
        metric=group.keep.metric,
        value=None if final else float(model.value),
    )
