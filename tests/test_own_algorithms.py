"""docs/algorithms.md: the algorithm of the page does what it says."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import fedjax_sim as fs
from tests.conftest import SIZES, flat, linear_loss, zeros
from tests.helpers.reference import blocks, gradient

LR = 0.05


def cohort_of(*ids):
    return fs.Cohort(jnp.array(ids, jnp.int32), jnp.ones(len(ids), bool))


def test_clients_of_the_page_keep_their_momentum(clients, data):
    namespace = {}
    text = (Path(__file__).parent.parent / "docs" / "algorithms.md").read_text()
    for block in re.findall(r"```python\n(.*?)```", text, re.S):
        exec(block, namespace)
    (kept,) = jax.tree.leaves(namespace["state"].clients)
    assert kept[1] != 0
    np.testing.assert_array_equal(kept[np.array([0, 2])], 0)

    make = namespace["fedavg_with_kept_momentum"]
    algorithm = make(linear_loss, LR, 0.9, fs.LocalTraining(2, 4, shuffle=False))
    round_fn = jax.jit(fs.make_round(algorithm))
    state = fs.init(algorithm, zeros(), data)
    w, momenta = np.zeros(5), np.zeros((len(SIZES), 5))
    for ids in ((1, 4), (4, 5), (1, 5)):
        state, _ = round_fn(jax.random.key(0), state, data, cohort_of(*ids))
        deltas = []
        for k in ids:
            v = w.copy()
            for rows in blocks(SIZES[k], 2, 4, "epochs"):
                momenta[k] = 0.9 * momenta[k] + gradient(
                    v, clients[k][0][rows], clients[k][1][rows]
                )
                v = v - LR * momenta[k]
            deltas.append(v - w)
        sizes = np.array([SIZES[k] for k in ids])
        w = w + sizes / sizes.sum() @ np.array(deltas)
        np.testing.assert_allclose(flat(state.params), w, atol=1e-5)
