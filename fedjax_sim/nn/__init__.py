"""Layers that stay fast inside `scan` and under `vmap` over clients."""

from fedjax_sim.nn.convolution import conv_general_dilated as conv_general_dilated
