"""Regional wind power in miniature: a generated regression task with natural clients."""

import jax
import numpy as np

from fedjax_sim.core.checks import check_count
from fedjax_sim.core.randomness import check_key
from fedjax_sim.core.registry import declare
from fedjax_sim.core.types import Array
from fedjax_sim.datasets.types import REGRESSION, Dataset, Facts


@declare(
    "generated wind regions",
    facts=Facts(
        "mlp", 10, REGRESSION, fraction=0.3, client_lr=0.02, target=0.75, natural=True, fixed=False
    ),
)
def wind(key: Array, num_regions: int = 10, mean_examples: int = 200) -> Dataset:
    """Regions with their own winds and their own wind-power curves; predict the power.

    Region k has Weibull winds v (m/s; shape 1.6 to 2.6, scale 5 to 11) and turbines with
    cut-in speed v_in (2.5 to 4), rated speed v_r (10 to 15) and cut-out speed v_out (22 to
    27), whose power in per unit of its rating at air density rho (kg/m^3) is

        P(v) = clip((rho / 1.225) (v^3 - v_in^3) / (v_r^3 - v_in^3), 0, 1)  for v < v_out

    and 0 beyond. The target is P, less wake losses of up to 15 % in a direction of the
    region's own, with noise of 0.03. Sizes are lognormal, so regions are ragged. Clients
    have nothing in common but the physics: averaged models must meet them all.

    x: Float32[N, 4], (v / 10, sin of the direction, cos of it, 10 (rho / 1.225 - 1));
    y: Float32[N], power per unit; one fifth of each region's hours is the test set.

    Args:
      key: one typed key; the same key makes the same data.
      num_regions: K.
      mean_examples: hours of a region, on average.

    >>> wind(jax.random.key(0)).train["x"].shape[1]
    4
    """
    check_key(key)
    check_count("num_regions", num_regions)
    check_count("mean_examples", mean_examples)
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    parts = []
    for region in range(num_regions):
        size = max(5, int(rng.lognormal(np.log(mean_examples) - 0.125, 0.5)))
        speed = rng.uniform(5, 11) * rng.weibull(rng.uniform(1.6, 2.6), size)
        direction = rng.vonmises(rng.uniform(-np.pi, np.pi), 1.0, size)
        density = 1.225 * (1 + rng.uniform(-0.08, 0.04) + rng.normal(0, 0.02, size))
        cut_in, rated, cut_out = rng.uniform(2.5, 4), rng.uniform(10, 15), rng.uniform(22, 27)
        power = density / 1.225 * (speed**3 - cut_in**3) / (rated**3 - cut_in**3)
        power = np.clip(power, 0, 1) * (speed < cut_out)
        wake = rng.uniform(0, 0.15) * np.cos(direction - rng.uniform(-np.pi, np.pi)) ** 2
        y = power * (1 - wake) + rng.normal(0, 0.03, size)
        x = np.stack(
            [speed / 10, np.sin(direction), np.cos(direction), 10 * (density / 1.225 - 1)], axis=1
        )
        test = np.arange(size) % 5 == 0
        parts.append((x, y, test, np.full(size, region)))
    x, y, test, region_ids = (np.concatenate(column) for column in zip(*parts, strict=True))
    x, y = x.astype(np.float32), y.astype(np.float32)
    return Dataset(
        train={"x": x[~test], "y": y[~test]},
        test={"x": x[test], "y": y[test]},
        num_classes=None,
        client_ids=region_ids[~test].astype(np.int32),
        test_client_ids=region_ids[test].astype(np.int32),
    )
