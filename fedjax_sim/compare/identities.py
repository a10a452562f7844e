"""How the modes of a comparison differ: by a server learning rate, where the server is linear."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.compare.comparison import ResolvedComparison
from fedjax_sim.compare.measured import Row
from fedjax_sim.core.trees import scaled
from fedjax_sim.core.types import Array, PyTree, RoundContext
from fedjax_sim.training.communication import shapes_exchanged
from fedjax_sim.training.experiment import Experiment

_STEPS = 2  # of the server; momentum shows in the second
_SCALE = 0.25  # a power of two, which rounds nothing
_RELATIVE = 1e-3  # of the distance moved, far above what sums in float32 round


def is_linear(experiment: Experiment) -> bool:
    """Whether a server moves the model by s times as much where all averages are s times as large.

    Two steps of the server are taken from its first state with averages drawn at random, and with
    a quarter of them: FedAvg's moves a quarter as far, with momentum too, and FedAdam's does not,
    whose steps hardly depend on the size of an average. The model is drawn at random, too.
    """
    algorithm = experiment.algorithm
    if algorithm.aggregation is not None:
        return False  # it makes something else of the rule
    key = jax.random.key(0)
    params = experiment.params
    shapes = jax.eval_shape(params, key) if callable(params) else jax.eval_shape(_arrays, params)
    _, sent = shapes_exchanged(algorithm, shapes, experiment.federation)

    @jax.jit
    def moved(scale: Array, params: PyTree, averages: PyTree, totals: PyTree) -> PyTree:
        server = algorithm.init(params)
        for number in range(_STEPS):
            context = RoundContext(
                round=jnp.int32(number),
                num_clients=experiment.federation.num_clients,
                num_reporting=jnp.int32(1),
                weight_sum=jnp.float32(1),
                reporting_share=jnp.float32(1),
                key=jax.random.fold_in(key, number),
                denominator=jnp.float32(1),
                largest_weight=jnp.float32(1),
            )
            for place, exchange in enumerate(algorithm.exchanges):
                average, total = averages[number][place], totals[number][place]
                if exchange.aggregation is None:
                    average = scaled(scale, average)
                server = exchange.server_update(server, average, total, context)
        return jax.tree.map(jnp.subtract, algorithm.params(server), params)

    # Drawn by NumPy, because each draw of JAX would be a program of its own to compile.
    rng = np.random.default_rng(0)
    averages, totals = ([[tree[i] for tree in sent] for _ in range(_STEPS)] for i in range(2))
    drawn = _drawn((shapes, averages, totals), rng)
    whole, quarter = (
        [np.asarray(x, np.float64) for x in jax.tree.leaves(moved(scale, *drawn))]
        for scale in (jnp.float32(1), jnp.float32(_SCALE))
    )
    apart = sum(np.sum((_SCALE * x - y) ** 2) for x, y in zip(whole, quarter, strict=True))
    distance = sum(np.sum((_SCALE * x) ** 2) for x in whole)
    return bool(apart <= _RELATIVE**2 * distance)


def _arrays(tree: PyTree) -> PyTree:
    return jax.tree.map(jnp.asarray, tree)


def _drawn(shapes: PyTree, rng: np.random.Generator) -> PyTree:
    """Numbers in [0.5, 1.5], since there are shares and norms among those that are sent."""
    return jax.tree.map(lambda x: rng.uniform(0.5, 1.5, x.shape).astype(x.dtype), shapes)


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
