"""What makes an algorithm of another one."""

from fedjax_sim.transforms import asynchronous as asynchronous
from fedjax_sim.transforms import attacks as attacks
from fedjax_sim.transforms import compression as compression
from fedjax_sim.transforms import privacy as privacy
from fedjax_sim.transforms.sharing import partial as partial
from fedjax_sim.transforms.statistics import with_statistics as with_statistics
