"""Results of runs, as tables and files."""

from fedjax_sim.results.folder import ROUNDS as ROUNDS
from fedjax_sim.results.folder import SUMMARY as SUMMARY
from fedjax_sim.results.folder import TABLE as TABLE
from fedjax_sim.results.table import FORMAT as FORMAT
from fedjax_sim.results.table import Mean as Mean
from fedjax_sim.results.table import Results as Results
from fedjax_sim.results.table import Run as Run
from fedjax_sim.results.table import Scalar as Scalar
from fedjax_sim.results.table import joined as joined
from fedjax_sim.results.table import ranked as ranked
