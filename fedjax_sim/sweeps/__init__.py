"""Configurations times seeds, many in one compiled call.

A sweep is planned (`plan`: which configurations share a program, and how many run side by
side), run (`batch`), kept on disk (`store`) and put together (`sweeping`).
"""

from fedjax_sim.sweeps.sweeping import Swept as Swept
from fedjax_sim.sweeps.sweeping import sweep as sweep
