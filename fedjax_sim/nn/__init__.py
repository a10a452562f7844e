"""Layers that stay fast inside `scan` and under `vmap` over clients."""

from fedjax_sim.nn.convolution import conv_general_dilated as conv_general_dilated
from fedjax_sim.nn.dense import dot_general as dot_general
from fedjax_sim.nn.pooling import max_pool as max_pool
from fedjax_sim.nn.recurrent import LSTM as LSTM
from fedjax_sim.nn.recurrent import lstm as lstm
