"""Facts of a run in JSON: the versions that it ran under, and numbers that JSON has no word for."""

from fedjax_sim.results.runs import Mean as Mean
from fedjax_sim.results.runs import Run as Run
from fedjax_sim.results.runs import Scalar as Scalar
from fedjax_sim.results.runs import ranked as ranked
