"""Sharing a part of a model, and keeping the rest with each client."""

from fedjax_sim.transforms.sharing.partial_sharing import WithPersonal as WithPersonal
from fedjax_sim.transforms.sharing.partial_sharing import partial as partial
