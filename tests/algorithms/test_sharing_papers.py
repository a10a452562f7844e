"""FedPer, LG-FedAvg and FedBN: FedAvg of a part, as `fs.partial` is tested beside NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen

import fedjax_sim as fs
from tests.conftest import linear_loss, zeros

LOCAL, KEY = fs.LocalTraining(2, 4, shuffle=False), jax.random.key(0)


@pytest.mark.parametrize("factory", [fs.fedper, fs.lgfedavg, fs.fedbn])
def test_they_are_partial_fedavg(data, factory):
    """The same computation, operation by operation."""
    server = optax.sgd(0.5, momentum=0.9)
    own = factory(linear_loss, optax.sgd(0.1), LOCAL, "b", server_optimizer=server)
    base = fs.fedavg(linear_loss, optax.sgd(0.1), LOCAL, server_optimizer=server)
    computed = []
    for algorithm in (own, fs.partial(base, "b")):
        state = fs.init(algorithm, zeros(), data)
        round_fn = fs.make_round(algorithm, execution=fs.execution.packed(1))
        graph = jax.make_jaxpr(round_fn)(KEY, state, data, fs.Cohort(jnp.arange(3)))
        computed.append(str(graph))
    assert computed[0] == computed[1]


class _Normed(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = linen.LayerNorm()(linen.Dense(3)(x))
        return linen.Dense(2, name="head")(linen.LayerNorm(name="bn1")(x))


def test_fedbn_keeps_the_norms():
    model = fs.models.from_flax(_Normed(), (4,))
    algorithm = fs.fedbn(fs.models.cross_entropy(model.apply), optax.sgd(0.1), LOCAL)
    params = model.init(KEY)
    rng = np.random.default_rng(0)
    data = fs.FederatedData.from_clients(
        [
            {"x": rng.normal(size=(5, 4)).astype(np.float32), "y": rng.integers(0, 2, 5)}
            for _ in range(2)
        ]
    )
    state = fs.init(algorithm, params, data)
    assert sorted(state.clients.personal) == [
        "LayerNorm_0/bias",
        "LayerNorm_0/scale",
        "bn1/bias",
        "bn1/scale",
    ]
    # Two dense layers travel, 4 x 3 + 3 and 3 x 2 + 2 numbers.
    assert tuple(fs.communication(algorithm, params, data)) == (4 * 23, 4 * 23)
    with pytest.raises(ValueError, match="because no layer of this model is called"):
        fs.init(fs.fedbn(linear_loss, optax.sgd(0.1), LOCAL), zeros(), data)
