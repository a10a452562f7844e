"""The papers' tables, run again: cells, their races of learning rates, the record of them."""

from fedjax_sim.reproduce.cells import TABLES as TABLES
from fedjax_sim.reproduce.cells import select as select
from fedjax_sim.reproduce.racing import race as race
from fedjax_sim.reproduce.store import Store as Store
