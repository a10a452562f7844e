"""Where a server learning rate makes two modes equal, and where none does."""

from typing import NamedTuple

import numpy as np
import optax
import pytest

import fedjax_sim as fs
from fedjax_sim.compare.comparison import Comparison
from fedjax_sim.compare.identities import identity, identity_of_modes, is_linear
from fedjax_sim.compare.measured import Row
from fedjax_sim.settings.build import experiment
from fedjax_sim.settings.setting import Setting

LINEAR = ("fedavg", "fedavgm", "fedprox", "scaffold", "fednova", "ditto", "apfl", "mime", "feddyn")
NOT_LINEAR = ("fedadam", "fedyogi", "fedadagrad")
BASE = {"clients": 10, "rounds": 2, "model": "logistic"}


def comparison(**values):
    return Comparison(Setting.of({**BASE, **values}), (0.2,), ("selected", "all_clients"), 1)


@pytest.mark.parametrize("name", LINEAR + NOT_LINEAR)
def test_which_servers_are_linear(name):
    setting = comparison(algorithm=name).resolved()
    assert is_linear(experiment(setting.base)) == (name in LINEAR)


def test_feddf_makes_something_else_of_the_rule():
    class Given(NamedTuple):
        algorithm: fs.FederatedAlgorithm

    model = fs.models.logistic_regression((2,), 3)
    algorithm = fs.feddf(
        fs.models.cross_entropy(model.apply),
        optax.sgd(0.1),
        fs.LocalTraining(),
        {"x": np.zeros((8, 2), np.float32)},
        steps=1,
        lr=1e-3,
    )
    assert not is_linear(Given(algorithm))


def row(share):
    return Row("selected", 0.2, 2, 1, 2, 0.5, None, 0, 0, None, 1.0, 1.0, 1.0, share, share, share)


def test_the_lines_say_what_is_true():
    table = [row(0.25)]
    assert identity(comparison().resolved(), table) == [
        "C=0.2: those selected hold 25 % of the examples in every round. all_clients with server "
        "lr 4 is selected with 1; selected with 0.25 is all_clients with 1."
    ]
    (no_rate,) = identity(comparison(algorithm="apfl").resolved(), table)
    assert no_rate.endswith(" A step of all_clients is 0.25 of that of selected.")
    fedadam = comparison(algorithm="fedadam").resolved()
    (none,) = identity(fedadam, table, linear=False)
    assert none == "C=0.2: those selected hold 25 % of the examples in every round."
    assert "the server of fedadam is not linear" in identity_of_modes(fedadam, linear=False)
    assert identity(fedadam, [row(1.0)], linear=False)[0].endswith("The modes coincide.")
