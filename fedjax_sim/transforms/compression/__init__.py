"""Compressing what clients and the server send: codecs, and the algorithm that sends by them."""

from fedjax_sim.transforms.compression.codec import Codec as Codec
from fedjax_sim.transforms.compression.compressed import compressed as compressed
from fedjax_sim.transforms.compression.drive import drive as drive
from fedjax_sim.transforms.compression.quantise import quantise as quantise
from fedjax_sim.transforms.compression.random_k import random_k as random_k
from fedjax_sim.transforms.compression.sign import sign as sign
from fedjax_sim.transforms.compression.top_k import top_k as top_k
