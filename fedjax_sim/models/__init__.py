"""Models of the papers, and the losses that go with them.

A model is a pair (init, apply) of pure functions; nothing in the package needs one. Any
function `loss_fn(params, batch, key) -> losses[B]` is a model to the rest of the package.
"""

from fedjax_sim.models.adapters import Adapter as Adapter
from fedjax_sim.models.adapters import lora as lora
from fedjax_sim.models.adapters import trained_part as trained_part
from fedjax_sim.models.convolutional import cifar_cnn as cifar_cnn
from fedjax_sim.models.convolutional import cnn as cnn
from fedjax_sim.models.convolutional import lenet as lenet
from fedjax_sim.models.convolutional import unpadded_cnn as unpadded_cnn
from fedjax_sim.models.losses import CrossEntropy as CrossEntropy
from fedjax_sim.models.losses import SquaredError as SquaredError
from fedjax_sim.models.losses import cross_entropy as cross_entropy
from fedjax_sim.models.losses import squared_error as squared_error
from fedjax_sim.models.model import Model as Model
from fedjax_sim.models.model import from_flax as from_flax
from fedjax_sim.models.perceptrons import logistic_regression as logistic_regression
from fedjax_sim.models.perceptrons import mlp as mlp
from fedjax_sim.models.perceptrons import small_mlp as small_mlp
from fedjax_sim.models.perceptrons import time_series_mlp as time_series_mlp
from fedjax_sim.models.perceptrons import two_nn as two_nn
from fedjax_sim.models.precision import mixed_precision as mixed_precision
from fedjax_sim.models.resnet import resnet18 as resnet18
from fedjax_sim.models.sequences import character_lstm as character_lstm
from fedjax_sim.models.sequences import transformer as transformer
