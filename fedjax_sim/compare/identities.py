"""How the modes of a comparison differ: by a server learning rate, where the server is linear."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from fedjax_sim.compare.comparison import ResolvedComparison
from fedjax_sim.compare.measured import Row
from fedjax_sim.core.types import Array, PyTree, RoundContext
from fedjax_sim.training.communication import shapes_exchanged
from fedjax_sim.training.experiment import Experiment

_SCALE = 0.25  # a power of two, which rounds nothing
_RELATIVE = 1e-3  # of the distance moved, far above what sums in float32 round


def is_linear(experiment: Experiment) -> bool:
    """Whether a server moves the model by s times as much where all averages are s times as large.

    Two steps of the server are taken from its first state with averages drawn at random, and with
    a quarter of them: FedAvg's moves a quarter as far, with momentum too, and FedAdam's does not,
    whose steps hardly depend on the size of an average.
    """
    algorithm = experiment.algorithm
    if algorithm.aggregation is not None:
        return False  # it makes something else of the rule
    key = jax.random.key(0)
    params = experiment.params(key) if callable(experiment.params) else experiment.params
    params = jax.tree.map(jnp.asarray, params)
    _, sent = shapes_exchanged(algorithm, params, experiment.federation)

    def drawn(shapes: PyTree, key: Array, scale: float) -> PyTree:
        leaves, structure = jax.tree.flatten(shapes)
        keys = jax.random.split(key, max(1, len(leaves)))
        # Positive, as shares and norms among them are.
        values = [
            scale * jax.random.uniform(k, x.shape, minval=0.5, maxval=1.5).astype(x.dtype)
            for k, x in zip(keys, leaves, strict=False)
        ]
        return jax.tree.unflatten(structure, values)

    @jax.jit
    def moved(scale: float) -> PyTree:
        server = algorithm.init(params)
        for number in range(2):
            for place, (exchange, (update, total)) in enumerate(
                zip(algorithm.exchanges, sent, strict=True)
            ):
                own_key = jax.random.fold_in(jax.random.fold_in(key, number), place)
                of_rule = scale if exchange.aggregation is None else 1.0
                context = RoundContext(
                    round=jnp.int32(number),
                    num_clients=experiment.federation.num_clients,
                    num_reporting=jnp.int32(1),
                    weight_sum=jnp.float32(1),
                    reporting_share=jnp.float32(1),
                    key=own_key,
                    denominator=jnp.float32(1),
                    largest_weight=jnp.float32(1),
                )
                average = drawn(update, own_key, of_rule)
                fixed = drawn(total, jax.random.fold_in(own_key, 1), 1.0)
                server = exchange.server_update(server, average, fixed, context)
        return jax.tree.map(jnp.subtract, algorithm.params(server), params)

    whole, quarter = (jax.tree.leaves(moved(scale)) for scale in (1.0, _SCALE))
    apart = sum(float(jnp.sum((_SCALE * x - y) ** 2)) for x, y in zip(whole, quarter, strict=True))
    distance = sum(float(jnp.sum((_SCALE * x) ** 2)) for x in whole)
    return apart <= _RELATIVE**2 * distance


def compares_readings(setting: ResolvedComparison) -> bool:
    """Whether both readings of FedAvg are among the modes, of which the identity speaks."""
    return {"selected", "all_clients"} <= {*setting.modes}


def identity(setting: ResolvedComparison, table: Sequence[Row], linear: bool = True) -> list[str]:
    """Which server learning rates make the two readings equal, for each fraction.

    Where they are not both among the modes, what share of the examples is selected, alone.

    `all_clients = w + (n_V/n) (selected - w)`: exactly where n_V/n is the same in every
    round, else up to how it varies.

    Args:
      linear: what `is_linear` says of the server; where it is not, no rate makes them equal.
    """
    server = setting.base.server
    lines = []
    for fraction in dict.fromkeys(row.fraction for row in table):
        row = next(row for row in table if row.fraction == fraction)
        line = f"C={fraction:g}: those selected hold {100 * row.mean_share:.3g} % of the examples"
        if row.max_share - row.min_share < 1e-6:
            line += " in every round."
        else:
            line += f" ({100 * row.min_share:.3g} to {100 * row.max_share:.3g} % by round)."
        if not compares_readings(setting):
            pass
        elif row.min_share >= 1 - 1e-6:
            line += " The modes coincide."
        elif linear and server is None:
            line += f" A step of all_clients is {row.mean_share:.3g} of that of selected."
        elif linear and server is not None:
            lr = float(server.lr)
            line += (
                f" all_clients with server lr {lr / row.mean_share:.3g} is selected with {lr:g}; "
                f"selected with {row.mean_share * lr:.3g} is all_clients with {lr:g}."
            )
        lines.append(line)
    return lines


def identity_of_modes(setting: ResolvedComparison, linear: bool) -> str:
    """The identity in a sentence, or why there is none."""
    if not linear:
        return (
            f"all_clients averages to n_V/n of what selected does, where the clients selected hold "
            f"n_V of the n examples; the server of {setting.base.algorithm} is not linear in the "
            "averages, so that no server learning rate makes the two modes equal."
        )
    return (
        "all_clients = w + (n_V/n) (selected - w), where the clients selected hold n_V of the n "
        "examples: the two modes differ by a server learning rate."
    )
