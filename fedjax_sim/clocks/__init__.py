"""Clocks: how fast clients compute and communicate."""

from fedjax_sim.clocks.clocks import equal as equal
from fedjax_sim.clocks.clocks import given as given
from fedjax_sim.clocks.clocks import lognormal as lognormal
