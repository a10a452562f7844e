"""Data sets as arrays on the host: some ship with the package, `fetch` gets the others."""

from fedjax_sim.datasets.clients import FetchError as FetchError
from fedjax_sim.datasets.digits import digits as digits
from fedjax_sim.datasets.fetching import fetch as fetch
from fedjax_sim.datasets.images import fashion_mnist as fashion_mnist
from fedjax_sim.datasets.images import mnist as mnist
from fedjax_sim.datasets.types import Dataset as Dataset
from fedjax_sim.datasets.wind import wind as wind
