"""The federation: clients' examples end to end."""

from fedjax_sim.data.checks import check_whole as check_whole
from fedjax_sim.data.client_states import ClientStates as ClientStates
from fedjax_sim.data.federation import FederatedData as FederatedData
from fedjax_sim.data.federation import check_data as check_data
from fedjax_sim.data.sizes import padded_sizes as padded_sizes
from fedjax_sim.data.source import Source as Source
from fedjax_sim.data.store import FederatedStore as FederatedStore
from fedjax_sim.data.window import checked_leaves as checked_leaves
from fedjax_sim.data.window import read_clients as read_clients
from fedjax_sim.data.window import read_rows as read_rows
from fedjax_sim.data.window import usual_rows as usual_rows
