"""Federated algorithms, one paper a file."""

from fedjax_sim.algorithms.global_model.fedavg import fedavg as fedavg
from fedjax_sim.algorithms.global_model.fedprox import fedprox as fedprox
from fedjax_sim.algorithms.global_model.fedsgd import fedsgd as fedsgd
from fedjax_sim.algorithms.global_model.scaffold import scaffold as scaffold
