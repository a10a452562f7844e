"""A federation knows its clients' names, and no round looks at them."""

import jax
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from tests.conftest import MESH

KEY, NAMES = jax.random.key(0), ("ann", "bob", "é")
CLIENTS = [np.full(n, value, np.float32) for n, value in ((2, 1.0), (0, 0.0), (1, 4.0))]
FLAT, IDS = np.array([1.0, 1.0, 4.0], np.float32), [0, 0, 2]


def test_both_ways_to_build_keep_them():
    by_client = fs.FederatedData.from_clients(CLIENTS, client_names=NAMES)
    flat = fs.FederatedData.from_arrays(FLAT, IDS, client_names=list(NAMES))
    assert by_client.client_names == flat.client_names == NAMES
    # As many clients as names, though the last one might have no example.
    assert fs.FederatedData.from_arrays(FLAT, [0, 0, 1], client_names=NAMES).num_clients == 3
    assert fs.FederatedData.from_clients(CLIENTS).client_names is None
    assert jax.tree.map(lambda x: x, flat).client_names == NAMES
    assert fs.execution.replicate(flat, MESH).client_names == NAMES
    assert jax.jit(lambda data: data)(flat).client_names == NAMES


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (NAMES[:2], "client_names must be one for each of the 3 clients; got 2"),
        (("ann", "bob", "ann"), "client_names must differ; 'ann' is there more than once"),
        ((1, 2, 3), "client_names must be a list of texts, one for each client; got 1 among them"),
        ("ann", "client_names must be a list of texts, one for each client; got 'ann'"),
        (3, "client_names must be a list of texts, one for each client; got 3"),
    ],
)
def test_what_is_no_names(names, message):
    with pytest.raises(ValueError, match=message):
        fs.FederatedData.from_clients(CLIENTS, client_names=names)
    with pytest.raises(ValueError, match=message):
        fs.FederatedData.from_arrays(FLAT, IDS, num_clients=3, client_names=names)


def test_a_round_does_not_look_at_them():
    plain = fs.FederatedData.from_clients(CLIENTS)
    named = fs.FederatedData.from_clients(CLIENTS, client_names=NAMES)
    algorithm = fs.fedavg(
        lambda w, batch, key: (w - batch) ** 2, optax.sgd(0.1), fs.LocalTraining()
    )
    round_fn = fs.make_round(algorithm, execution=fs.execution.vmapped())
    state, cohort = fs.init(algorithm, 0.0, plain), fs.Cohort([0, 2])
    traced = [jax.make_jaxpr(round_fn)(KEY, state, data, cohort) for data in (plain, named)]
    assert str(traced[0]) == str(traced[1])
