"""How the clients of a round are executed. Every strategy gives the same result, to
float rounding; they differ in speed, memory and what can be differentiated.

A strategy is a callable `(engine, client_states, tasks, options) -> Executed`, with the states and
tasks of the cohort's m slots; `Strategy` says what else may be asked of one.
"""

from fedjax_sim.core.tasks import Options as Options
from fedjax_sim.execution.automatic import automatic as automatic
from fedjax_sim.execution.client import Engine as Engine
from fedjax_sim.execution.packed import packed as packed
from fedjax_sim.execution.placing import cores as cores
from fedjax_sim.execution.placing import replicate as replicate
from fedjax_sim.execution.sharded import sharded as sharded
from fedjax_sim.execution.strategy import Strategy as Strategy
from fedjax_sim.execution.vmapped import vmapped as vmapped
