"""Configurations times seeds, many in one compiled call.

A sweep is planned (`plan`: which configurations share a program, and how many run side by
side), run (`batch`), kept on disk (`store`), told of (`telling`) and put together
(`sweeping`).
"""

from fedjax_sim.sweeps.sweeping import sweep as sweep
from fedjax_sim.sweeps.telling import Swept as Swept
