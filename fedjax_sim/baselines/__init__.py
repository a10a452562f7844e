"""Baselines of a federation: training on the pooled data, and every client on its own.

`centralised` and `local_only` take an `fs.Experiment` and return one, which runs as the first does.
"""

from fedjax_sim.baselines.centralised import centralised as centralised
from fedjax_sim.baselines.evaluation import LocalEvaluation as LocalEvaluation
from fedjax_sim.baselines.evaluation import evaluate_local as evaluate_local
from fedjax_sim.baselines.local_only import OwnModel as OwnModel
from fedjax_sim.baselines.local_only import local_models as local_models
from fedjax_sim.baselines.local_only import local_only as local_only
