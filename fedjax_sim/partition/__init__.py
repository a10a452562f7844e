"""Splitting a data set over clients, on the host.

A split is `client_ids`, Int[N]: the client each example goes to, as
`FederatedData.from_arrays(examples, client_ids, num_clients)` takes it. Splits are seeded by a
typed key; `describe` says in figures what one is like.
"""

from fedjax_sim.partition.applied import apply_to as apply_to
from fedjax_sim.partition.by_label import dirichlet as dirichlet
from fedjax_sim.partition.by_label import labels as labels
from fedjax_sim.partition.by_label import shards as shards
from fedjax_sim.partition.by_size import iid as iid
from fedjax_sim.partition.by_size import quantity as quantity
from fedjax_sim.partition.dealing import check_min_examples as check_min_examples
from fedjax_sim.partition.description import Description as Description
from fedjax_sim.partition.description import describe as describe
from fedjax_sim.partition.features import noise as noise
from fedjax_sim.partition.features import rotation as rotation
from fedjax_sim.partition.given import natural as natural
from fedjax_sim.partition.held_out import holdout as holdout
