"""Privacy of clients: clips, noise, and the budget that a run spends."""

from fedjax_sim.transforms.privacy.accounting import budget as budget
from fedjax_sim.transforms.privacy.accounting import calibrate as calibrate
from fedjax_sim.transforms.privacy.adaptive import adaptive_clipping as adaptive_clipping
from fedjax_sim.transforms.privacy.client_noise import local as local
from fedjax_sim.transforms.privacy.server_noise import central as central
