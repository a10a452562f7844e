"""Data sets that come with the package, as arrays on the host."""

from fedjax_sim.datasets.digits import digits as digits
from fedjax_sim.datasets.synthetic import synthetic as synthetic
from fedjax_sim.datasets.types import Dataset as Dataset
from fedjax_sim.datasets.wind import wind as wind
