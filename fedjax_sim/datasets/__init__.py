"""Data sets as arrays on the host: some ship with the package, `fetch` gets the others."""

from fedjax_sim.datasets.activity import activity as activity
from fedjax_sim.datasets.cifar import cifar10 as cifar10
from fedjax_sim.datasets.digits import digits as digits
from fedjax_sim.datasets.fetching.clients import FetchError as FetchError
from fedjax_sim.datasets.fetching.fetch import fetch as fetch
from fedjax_sim.datasets.formats.csv import csv as csv
from fedjax_sim.datasets.formats.hdf5 import hdf5 as hdf5
from fedjax_sim.datasets.formats.hugging_face import hugging_face as hugging_face
from fedjax_sim.datasets.formats.leaf import leaf as leaf
from fedjax_sim.datasets.formats.npz import npz as npz
from fedjax_sim.datasets.formats.sqlite import sqlite as sqlite
from fedjax_sim.datasets.household import household as household
from fedjax_sim.datasets.images import fashion_mnist as fashion_mnist
from fedjax_sim.datasets.images import mnist as mnist
from fedjax_sim.datasets.irish_wind import irish_wind as irish_wind
from fedjax_sim.datasets.shakespeare import VOCABULARY as SHAKESPEARE_VOCABULARY  # noqa: F401  # exported by a longer name
from fedjax_sim.datasets.shakespeare import shakespeare as shakespeare
from fedjax_sim.datasets.synthetic import synthetic as synthetic
from fedjax_sim.datasets.synthetic import synthetic_iid as synthetic_iid
from fedjax_sim.datasets.types import Dataset as Dataset
from fedjax_sim.datasets.wind import wind as wind
from fedjax_sim.datasets.wind_farm import wind_farm as wind_farm
