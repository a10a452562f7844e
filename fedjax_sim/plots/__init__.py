"""Figures of results and of splits."""

from fedjax_sim.plots.client_figure import clients as clients
from fedjax_sim.plots.figures import best as best
from fedjax_sim.plots.figures import curves as curves
from fedjax_sim.plots.figures import plot as plot
from fedjax_sim.plots.figures import save as save
from fedjax_sim.plots.response_figure import response as response
from fedjax_sim.plots.split_figure import split as split
