"""Asynchronous rounds: the server does not wait for the slow."""

from fedjax_sim.transforms.asynchronous.buffered import fedasync as fedasync
from fedjax_sim.transforms.asynchronous.buffered import fedbuff as fedbuff
from fedjax_sim.transforms.asynchronous.staleness import constant as constant
from fedjax_sim.transforms.asynchronous.staleness import hinge as hinge
from fedjax_sim.transforms.asynchronous.staleness import polynomial as polynomial
