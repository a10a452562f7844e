"""Federated algorithms, one paper a file."""

from fedjax_sim.algorithms.fedavg import fedavg as fedavg
from fedjax_sim.algorithms.fedprox import fedprox as fedprox
from fedjax_sim.algorithms.fedsgd import fedsgd as fedsgd
from fedjax_sim.algorithms.scaffold import scaffold as scaffold
