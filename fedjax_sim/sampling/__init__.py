"""Samplers, which draw the clients that take part in a round."""

from fedjax_sim.core.sampling_law import Poisson as Poisson
from fedjax_sim.sampling import traces as traces
from fedjax_sim.sampling.availability import available as available
from fedjax_sim.sampling.availability import deadline as deadline
from fedjax_sim.sampling.power_of_choice import power_of_choice as power_of_choice
from fedjax_sim.sampling.sampler import Sampler as Sampler
from fedjax_sim.sampling.sampler import custom as custom
from fedjax_sim.sampling.samplers import bernoulli as bernoulli
from fedjax_sim.sampling.samplers import everyone as everyone
from fedjax_sim.sampling.samplers import uniform as uniform
from fedjax_sim.sampling.samplers import weighted as weighted
from fedjax_sim.sampling.samplers import with_replacement as with_replacement
