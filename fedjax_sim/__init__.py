"""Federated learning in JAX: a round, a run and a sweep are each one XLA call.

    import fedjax_sim as fs

One round: `fs.fedavg`, `fs.fednova`, `fs.fedprox`, `fs.fedsgd`, `fs.ifca`, `fs.mime`, `fs.qfedavg`
and `fs.scaffold`, and with a model of each client's own `fs.apfl`, `fs.ditto`, `fs.perfedavg` and
`fs.pfedme`, make an algorithm (of `fs.LocalTraining` and, at the server, of optax or
`fs.server_optimizers`), `fs.init` its state and `fs.make_round` its round, a pure function.
`fs.sampling` draws cohorts, `fs.aggregation` says what is averaged and `fs.execution` how clients
share the machine. `fs.compression` makes clients send less, and `fs.partial` keeps parameters with
them.

Many: `fs.run` is R rounds in one scan, `fs.simulate` runs an `fs.Experiment` with checkpoints and a
criterion to stop by (`fs.reaches`, `fs.patience`, `fs.any_of`), `fs.sweep` a grid (`fs.grid`) of
them with seeds; `fs.baselines` trains without federating. `fs.evaluate`, `fs.evaluator` and
`fs.client_statistics` measure, as `fs.evaluate_clients` does each client's own model of
`fs.personal_params`; `fs.communication` counts bytes.

What is left: `fs.Results` of runs, and the model, which `fs.load` reads from the folder of a run or
a sweep; `fs.save_params` and `fs.load_params` write and read one model alone.

Data and models: `fs.FederatedData` (of examples that memory does not hold, by windows on a source
of `fs.data`), `fs.partition`, and, loaded where they are used, `fs.datasets`, `fs.models`, `fs.nn`,
`fs.plots` and `fs.writers`.

Types, to annotate and to write one's own algorithm with: `fs.ClientOutput`, `fs.ClientStatistics`,
`fs.ClientUpdate`, `fs.Coefficients`, `fs.Cohort`, `fs.Communication`, `fs.Evaluation`,
`fs.Exchange`,
`fs.FederatedAlgorithm`, `fs.FederatedState`, `fs.History`, `fs.InterruptedRun`, `fs.RoundContext`,
`fs.RoundMetrics`, `fs.SaveError`, `fs.Simulation`, `fs.Stop`, `fs.Trained`.

These are the public names, as `dir(fs)` lists them. What `help(fs)` lists next, as PACKAGE
CONTENTS, are the package's folders and files; those not named here are internal.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedjax_sim import aggregation as aggregation
    from fedjax_sim import baselines as baselines
    from fedjax_sim import data as data
    from fedjax_sim import datasets as datasets
    from fedjax_sim import execution as execution
    from fedjax_sim import grid as grid
    from fedjax_sim import models as models
    from fedjax_sim import nn as nn
    from fedjax_sim import partition as partition
    from fedjax_sim import plots as plots
    from fedjax_sim import sampling as sampling
    from fedjax_sim import writers as writers
    from fedjax_sim.algorithms import fedavg as fedavg
    from fedjax_sim.algorithms import fednova as fednova
    from fedjax_sim.algorithms import fedprox as fedprox
    from fedjax_sim.algorithms import fedsgd as fedsgd
    from fedjax_sim.algorithms import mime as mime
    from fedjax_sim.algorithms import qfedavg as qfedavg
    from fedjax_sim.algorithms import scaffold as scaffold
    from fedjax_sim.algorithms import server_optimizers as server_optimizers
    from fedjax_sim.algorithms.global_model.ifca import ifca as ifca
    from fedjax_sim.algorithms.personal.apfl import apfl as apfl
    from fedjax_sim.algorithms.personal.ditto import ditto as ditto
    from fedjax_sim.algorithms.personal.perfedavg import perfedavg as perfedavg
    from fedjax_sim.algorithms.personal.pfedme import pfedme as pfedme
    from fedjax_sim.core.files import SaveError as SaveError
    from fedjax_sim.core.history import Communication as Communication
    from fedjax_sim.core.history import History as History
    from fedjax_sim.core.history import RoundMetrics as RoundMetrics
    from fedjax_sim.core.interrupted import InterruptedRun as InterruptedRun
    from fedjax_sim.core.types import ClientOutput as ClientOutput
    from fedjax_sim.core.types import ClientUpdate as ClientUpdate
    from fedjax_sim.core.types import Coefficients as Coefficients
    from fedjax_sim.core.types import Cohort as Cohort
    from fedjax_sim.core.types import Exchange as Exchange
    from fedjax_sim.core.types import FederatedAlgorithm as FederatedAlgorithm
    from fedjax_sim.core.types import FederatedState as FederatedState
    from fedjax_sim.core.types import LocalTraining as LocalTraining
    from fedjax_sim.core.types import RoundContext as RoundContext
    from fedjax_sim.data import FederatedData as FederatedData
    from fedjax_sim.host.simulate import simulate as simulate
    from fedjax_sim.host.simulation import Simulation as Simulation
    from fedjax_sim.host.stopping import Stop as Stop
    from fedjax_sim.host.stopping import any_of as any_of
    from fedjax_sim.host.stopping import patience as patience
    from fedjax_sim.host.stopping import reaches as reaches
    from fedjax_sim.results import Results as Results
    from fedjax_sim.results.model_file import load_params as load_params
    from fedjax_sim.results.model_file import save_params as save_params
    from fedjax_sim.results.trained import Trained as Trained
    from fedjax_sim.results.trained import load as load
    from fedjax_sim.sweeps import sweep as sweep
    from fedjax_sim.training.communication import communication as communication
    from fedjax_sim.training.evaluation import ClientStatistics as ClientStatistics
    from fedjax_sim.training.evaluation import Evaluation as Evaluation
    from fedjax_sim.training.evaluation import client_statistics as client_statistics
    from fedjax_sim.training.evaluation import evaluate as evaluate
    from fedjax_sim.training.evaluation import evaluator as evaluator
    from fedjax_sim.training.experiment import Experiment as Experiment
    from fedjax_sim.training.personal import evaluate_clients as evaluate_clients
    from fedjax_sim.training.personal import personal_params as personal_params
    from fedjax_sim.training.round import make_round as make_round
    from fedjax_sim.training.run import run as run
    from fedjax_sim.training.state import init as init
    from fedjax_sim.transforms import compression as compression
    from fedjax_sim.transforms import partial as partial

__version__ = "0.1.0"

# What `help` and `dir` list, and no more; a new public name is added here, too.
__all__ = [
    "ClientOutput",
    "ClientStatistics",
    "ClientUpdate",
    "Coefficients",
    "Cohort",
    "Communication",
    "Evaluation",
    "Exchange",
    "Experiment",
    "FederatedAlgorithm",
    "FederatedData",
    "FederatedState",
    "History",
    "InterruptedRun",
    "LocalTraining",
    "Results",
    "RoundContext",
    "RoundMetrics",
    "SaveError",
    "Simulation",
    "Stop",
    "Trained",
    "aggregation",
    "any_of",
    "apfl",
    "baselines",
    "client_statistics",
    "communication",
    "compression",
    "data",
    "datasets",
    "ditto",
    "evaluate",
    "evaluate_clients",
    "evaluator",
    "execution",
    "fedavg",
    "fednova",
    "fedprox",
    "fedsgd",
    "grid",
    "ifca",
    "init",
    "load",
    "load_params",
    "make_round",
    "mime",
    "models",
    "nn",
    "partial",
    "partition",
    "patience",
    "perfedavg",
    "personal_params",
    "pfedme",
    "plots",
    "qfedavg",
    "reaches",
    "run",
    "sampling",
    "save_params",
    "scaffold",
    "server_optimizers",
    "simulate",
    "sweep",
    "writers",
]
# Where each is, because a name is imported once it is asked for: the command line's help needs no
# JAX, and rounds need no flax. A test compares it with the imports above.
_WHERE = {
    "fedjax_sim.algorithms.personal.perfedavg": ("perfedavg",),
    "fedjax_sim.algorithms.personal.pfedme": ("pfedme",),
    "fedjax_sim.algorithms.personal.apfl": ("apfl",),
    "fedjax_sim.algorithms.personal.ditto": ("ditto",),
    "fedjax_sim": (
        "aggregation",
        "baselines",
        "data",
        "execution",
        "grid",
        "partition",
        "sampling",
        "datasets",
        "models",
        "nn",
        "plots",
        "writers",
    ),
    "fedjax_sim.algorithms": (
        "fedavg",
        "fednova",
        "fedprox",
        "fedsgd",
        "mime",
        "qfedavg",
        "scaffold",
        "server_optimizers",
    ),
    "fedjax_sim.algorithms.global_model.ifca": ("ifca",),
    "fedjax_sim.core.files": ("SaveError",),
    "fedjax_sim.core.history": (
        "Communication",
        "History",
        "RoundMetrics",
    ),
    "fedjax_sim.core.interrupted": ("InterruptedRun",),
    "fedjax_sim.core.types": (
        "ClientOutput",
        "ClientUpdate",
        "Coefficients",
        "Cohort",
        "Exchange",
        "FederatedAlgorithm",
        "FederatedState",
        "LocalTraining",
        "RoundContext",
    ),
    "fedjax_sim.data": ("FederatedData",),
    "fedjax_sim.host.simulate": ("simulate",),
    "fedjax_sim.host.simulation": ("Simulation",),
    "fedjax_sim.host.stopping": (
        "Stop",
        "any_of",
        "patience",
        "reaches",
    ),
    "fedjax_sim.results": ("Results",),
    "fedjax_sim.results.model_file": (
        "load_params",
        "save_params",
    ),
    "fedjax_sim.results.trained": (
        "Trained",
        "load",
    ),
    "fedjax_sim.sweeps": ("sweep",),
    "fedjax_sim.training.communication": ("communication",),
    "fedjax_sim.training.evaluation": (
        "ClientStatistics",
        "Evaluation",
        "client_statistics",
        "evaluate",
        "evaluator",
    ),
    "fedjax_sim.training.experiment": ("Experiment",),
    "fedjax_sim.training.personal": (
        "evaluate_clients",
        "personal_params",
    ),
    "fedjax_sim.training.round": ("make_round",),
    "fedjax_sim.training.run": ("run",),
    "fedjax_sim.training.state": ("init",),
    "fedjax_sim.transforms": (
        "compression",
        "partial",
    ),
}
_MODULE_OF = {name: module for module, names in _WHERE.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'fedjax_sim' has no attribute {name!r}")
    module = _MODULE_OF[name]
    if module == __name__:
        return importlib.import_module(f"{module}.{name}")
    value = getattr(importlib.import_module(module), name)
    globals()[name] = value  # the next time, it is there
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, *(name for name in globals() if name.startswith("__"))])
