"""Aggregation rules."""

from fedjax_sim.aggregation.averages import RULES as RULES
from fedjax_sim.aggregation.averages import all_clients as all_clients
from fedjax_sim.aggregation.averages import selected as selected
from fedjax_sim.aggregation.averages import unbiased as unbiased
from fedjax_sim.aggregation.averages import uniform as uniform
from fedjax_sim.aggregation.choice import chosen as chosen
from fedjax_sim.aggregation.robust.before import bucketing as bucketing
from fedjax_sim.aggregation.robust.before import (
    nearest_neighbour_mixing as nearest_neighbour_mixing,
)
from fedjax_sim.aggregation.robust.centres import centered_clipping as centered_clipping
from fedjax_sim.aggregation.robust.centres import geometric_median as geometric_median
from fedjax_sim.aggregation.robust.centres import norm_bounded as norm_bounded
from fedjax_sim.aggregation.robust.coordinates import median as median
from fedjax_sim.aggregation.robust.coordinates import trimmed_mean as trimmed_mean
from fedjax_sim.aggregation.robust.selection import krum as krum
from fedjax_sim.aggregation.robust.selection import multi_krum as multi_krum
