"""Federated learning in JAX: a round, a run and a sweep are each one XLA call.

    import fedjax_sim as fs

One round: a paper's name makes an algorithm (of `fs.LocalTraining` and, at the server, of optax or
`fs.server_optimizers`), `fs.init` its state and `fs.make_round` its round, a pure function.
`fs.sampling` draws cohorts, `fs.aggregation` says what is averaged and `fs.execution` how clients
share the machine. `fs.compression` makes clients send less, and `fs.partial` keeps parameters with
them; `fs.with_statistics` trains batch norm. `fs.privacy` clips and noises what is sent, and
counts the budget. `fs.clocks` say how fast clients are, in simulated seconds, and `fs.attacks` what
malicious clients send. In a round of `fs.asynchronous` the server does not wait for the slow ones.

Algorithms:
ALGORITHMS

Many: `fs.run` is R rounds in one scan, `fs.simulate` runs an `fs.Experiment` with checkpoints and a
criterion to stop by (`fs.reaches`, `fs.patience`, `fs.any_of`), `fs.sweep` a grid (`fs.grid`) of
them with seeds; `fs.baselines` trains without federating. `fs.evaluate`, `fs.evaluator` and
`fs.client_statistics` measure, as `fs.evaluate_clients` does each client's own model of
`fs.personal_params`, before and after `fs.FineTuning`; `fs.of_state` marks a measure of the whole
state. `fs.communication` counts bytes, and `fs.memory` those that an experiment needs.

What is left: `fs.Results` of runs, and the model, which `fs.load` reads from the folder of a run or
a sweep; `fs.save_params` and `fs.load_params` write and read one model alone.

Data and models: `fs.FederatedData` (of examples that memory does not hold, by windows on a source
of `fs.data`), `fs.partition`, and, loaded where they are used, `fs.datasets`, `fs.models`, `fs.nn`,
`fs.plots` and `fs.writers`.

To prove what is your own: `fs.testing` checks an algorithm, a rule, a strategy or a sampler.

Types, to annotate and to write one's own algorithm with: `fs.ClientOutput`, `fs.ClientStatistics`,
`fs.ClientUpdate`, `fs.Clock`, `fs.Coefficients`, `fs.Cohort`, `fs.Communication`, `fs.Evaluation`,
`fs.Exchange`, `fs.FederatedAlgorithm`, `fs.FederatedState`, `fs.FineTuned`, `fs.History`,
`fs.InterruptedRun`, `fs.LostProcessError`, `fs.Memory`, `fs.RoundContext`, `fs.RoundMetrics`,
`fs.SaveError`, `fs.Simulation`, `fs.Stop`, `fs.Trained`.

These are the public names, as `dir(fs)` lists them. What `help(fs)` lists next, as PACKAGE
CONTENTS, are the package's folders and files; those not named here are internal.
"""

import ast
import importlib
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

# All public names, and where each is: what type checkers read and, since a name loads on first
# use, what `__getattr__` looks up. `help` and `dir` list these and no more.
if TYPE_CHECKING:
    from fedjax_sim import aggregation as aggregation
    from fedjax_sim import baselines as baselines
    from fedjax_sim import clocks as clocks
    from fedjax_sim import data as data
    from fedjax_sim import datasets as datasets
    from fedjax_sim import execution as execution
    from fedjax_sim import grid as grid
    from fedjax_sim import models as models
    from fedjax_sim import nn as nn
    from fedjax_sim import partition as partition
    from fedjax_sim import plots as plots
    from fedjax_sim import sampling as sampling
    from fedjax_sim import testing as testing
    from fedjax_sim import writers as writers
    from fedjax_sim.algorithms import *  # noqa: F403  # the names of papers stand there alone
    from fedjax_sim.core.clock import Clock as Clock
    from fedjax_sim.core.evaluate import of_state as of_state
    from fedjax_sim.core.files import SaveError as SaveError
    from fedjax_sim.core.history import Communication as Communication
    from fedjax_sim.core.history import History as History
    from fedjax_sim.core.history import RoundMetrics as RoundMetrics
    from fedjax_sim.core.interrupted import InterruptedRun as InterruptedRun
    from fedjax_sim.core.interrupted import LostProcessError as LostProcessError
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
    from fedjax_sim.training.evaluator import evaluator as evaluator
    from fedjax_sim.training.experiment import Experiment as Experiment
    from fedjax_sim.training.fine_tuning import FineTuned as FineTuned
    from fedjax_sim.training.fine_tuning import FineTuning as FineTuning
    from fedjax_sim.training.memory import Memory as Memory
    from fedjax_sim.training.memory import memory as memory
    from fedjax_sim.training.personal import evaluate_clients as evaluate_clients
    from fedjax_sim.training.personal import personal_params as personal_params
    from fedjax_sim.training.round import make_round as make_round
    from fedjax_sim.training.run import run as run
    from fedjax_sim.training.state import init as init
    from fedjax_sim.transforms import asynchronous as asynchronous
    from fedjax_sim.transforms import attacks as attacks
    from fedjax_sim.transforms import compression as compression
    from fedjax_sim.transforms import partial as partial
    from fedjax_sim.transforms import privacy as privacy
    from fedjax_sim.transforms import with_statistics as with_statistics

__version__ = "0.1.0"


def _exported(module: str) -> dict[str, str]:
    """name -> the module that has it, of each `from MODULE import NAME as NAME` in a face.

    The face is read and not imported, because that would import JAX.
    """
    face = Path(__file__).parent.joinpath(*module.split(".")[1:], "__init__.py")
    names: dict[str, str] = {}
    for node in ast.walk(ast.parse(face.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom) or not str(node.module).startswith(__name__):
            continue
        source = str(node.module)
        if node.names[0].name == "*":
            names |= dict.fromkeys(_exported(source), source)
        names |= {alias.name: source for alias in node.names if alias.asname == alias.name}
    return names


_MODULE_OF = _exported(__name__)
__all__ = sorted(_MODULE_OF)  # read from the imports above

_of_papers = ", ".join(
    f"`fs.{name}`" for name, module in _MODULE_OF.items() if module == f"{__name__}.algorithms"
)
__doc__ = str(__doc__).replace("ALGORITHMS", textwrap.fill(_of_papers, 100))


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
