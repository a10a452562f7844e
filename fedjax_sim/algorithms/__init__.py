"""Federated algorithms, one paper a file.

What is exported here is `fs.NAME`, and a setting may name it where its file declares it. IFCA's
does not: a setting's run starts from one model and measures one, and IFCA has several.
"""

from fedjax_sim.algorithms import server_optimizers as server_optimizers
from fedjax_sim.algorithms.global_model.fedavg import fedavg as fedavg
from fedjax_sim.algorithms.global_model.fednova import fednova as fednova
from fedjax_sim.algorithms.global_model.fedprox import fedprox as fedprox
from fedjax_sim.algorithms.global_model.fedsgd import fedsgd as fedsgd
from fedjax_sim.algorithms.global_model.ifca import ifca as ifca
from fedjax_sim.algorithms.global_model.mime import mime as mime
from fedjax_sim.algorithms.global_model.qfedavg import qfedavg as qfedavg
from fedjax_sim.algorithms.global_model.scaffold import scaffold as scaffold
from fedjax_sim.algorithms.personal.apfl import apfl as apfl
from fedjax_sim.algorithms.personal.ditto import ditto as ditto
from fedjax_sim.algorithms.personal.perfedavg import perfedavg as perfedavg
from fedjax_sim.algorithms.personal.pfedme import pfedme as pfedme
