"""Federated algorithms, one paper a file.

What is exported here is `fs.NAME`, and a setting may name it.
"""

from fedjax_sim.algorithms import server_optimizers as server_optimizers
from fedjax_sim.algorithms.global_model.afl import afl as afl
from fedjax_sim.algorithms.global_model.fedavg import fedavg as fedavg
from fedjax_sim.algorithms.global_model.fedavgm import fedavgm as fedavgm
from fedjax_sim.algorithms.global_model.feddf import feddf as feddf
from fedjax_sim.algorithms.global_model.feddyn import feddyn as feddyn
from fedjax_sim.algorithms.global_model.fedexp import fedexp as fedexp
from fedjax_sim.algorithms.global_model.fedlc import fedlc as fedlc
from fedjax_sim.algorithms.global_model.fednova import fednova as fednova
from fedjax_sim.algorithms.global_model.fedopt import fedadagrad as fedadagrad
from fedjax_sim.algorithms.global_model.fedopt import fedadam as fedadam
from fedjax_sim.algorithms.global_model.fedopt import fedyogi as fedyogi
from fedjax_sim.algorithms.global_model.fedprox import fedprox as fedprox
from fedjax_sim.algorithms.global_model.fedsam import fedsam as fedsam
from fedjax_sim.algorithms.global_model.fedsgd import fedsgd as fedsgd
from fedjax_sim.algorithms.global_model.ifca import ifca as ifca
from fedjax_sim.algorithms.global_model.mifa import mifa as mifa
from fedjax_sim.algorithms.global_model.mime import mime as mime
from fedjax_sim.algorithms.global_model.mimelite import mimelite as mimelite
from fedjax_sim.algorithms.global_model.moon import moon as moon
from fedjax_sim.algorithms.global_model.qfedavg import qfedavg as qfedavg
from fedjax_sim.algorithms.global_model.scaffold import scaffold as scaffold
from fedjax_sim.algorithms.personal.apfl import apfl as apfl
from fedjax_sim.algorithms.personal.ditto import ditto as ditto
from fedjax_sim.algorithms.personal.fedbabu import fedbabu as fedbabu
from fedjax_sim.algorithms.personal.fedbn import fedbn as fedbn
from fedjax_sim.algorithms.personal.fedper import fedper as fedper
from fedjax_sim.algorithms.personal.fedrep import fedrep as fedrep
from fedjax_sim.algorithms.personal.lgfedavg import lgfedavg as lgfedavg
from fedjax_sim.algorithms.personal.perfedavg import perfedavg as perfedavg
from fedjax_sim.algorithms.personal.pfedme import pfedme as pfedme
