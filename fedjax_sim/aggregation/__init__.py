"""Aggregation rules."""

from fedjax_sim.aggregation.averages import RULES as RULES
from fedjax_sim.aggregation.averages import all_clients as all_clients
from fedjax_sim.aggregation.averages import selected as selected
from fedjax_sim.aggregation.averages import unbiased as unbiased
from fedjax_sim.aggregation.averages import uniform as uniform
from fedjax_sim.aggregation.robust import median as median
