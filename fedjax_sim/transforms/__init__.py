"""What makes an algorithm of another one."""

from fedjax_sim.transforms import compression as compression
from fedjax_sim.transforms.sharing import partial as partial
