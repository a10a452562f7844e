"""Compressing what clients send: codecs, and the algorithm that sends by one."""

from fedjax_sim.transforms.compression.codecs import Codec as Codec
from fedjax_sim.transforms.compression.codecs import top_k as top_k
from fedjax_sim.transforms.compression.uplink import compressed as compressed
