"""The federation: clients' examples end to end."""

from fedjax_sim.data.federation import FederatedData as FederatedData
from fedjax_sim.data.federation import _padded_sizes as _padded_sizes
from fedjax_sim.data.federation import check_data as check_data
