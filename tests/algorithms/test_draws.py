"""What a loss that draws, as by dropout, is given in a local step: which gradients share a draw."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs

LOCAL, RATE = fs.LocalTraining(1, 4), 0.1
# The number of draws of one local step. Those that descend several times in it draw anew each time;
# those that compare two models, or look up before they step, do so on one draw, as on one block.
DRAWS = {
    "fedavg": (lambda loss_fn: fs.fedavg(loss_fn, optax.sgd(RATE), LOCAL), 1),
    "pfedme": (lambda loss_fn: fs.pfedme(loss_fn, LOCAL, 2.0, RATE, 3, RATE), 3),
    "perfedavg": (lambda loss_fn: fs.perfedavg(loss_fn, RATE, RATE, LOCAL), 2),
    "ditto": (lambda loss_fn: fs.ditto(loss_fn, optax.sgd(RATE), LOCAL, 0.1), 1),
    "apfl": (lambda loss_fn: fs.apfl(loss_fn, RATE, LOCAL, 0.5), 1),
    "fedsam": (lambda loss_fn: fs.fedsam(loss_fn, optax.sgd(RATE), LOCAL, 0.05), 1),
    "mime": (lambda loss_fn: fs.mime(loss_fn, RATE, LOCAL), 1),
    "moon": (
        lambda loss_fn: fs.moon(loss_fn, optax.sgd(RATE), LOCAL, features=lambda w, x: x * w),
        1,
    ),
}


def after_a_step(algorithm, key):
    w = jnp.float32(1)
    message = algorithm.broadcast(algorithm.init(w), jnp.int32(0))
    kept = algorithm.init_client(w)
    carry = algorithm.client.init(message, kept, (), jax.random.key(7))
    return algorithm.client.step(carry, message, kept, jnp.ones((4, 1)), jnp.ones(4, bool), key)[0]


@pytest.mark.parametrize("name", DRAWS)
def test_how_often_a_step_draws(name):
    keys = set()

    def loss_fn(w, batch, key):
        keys.add(tuple(np.asarray(jax.random.key_data(key)).tolist()))
        return w * batch[:, 0]

    factory, count = DRAWS[name]
    with jax.disable_jit():  # so that the keys have values
        after_a_step(factory(loss_fn), jax.random.key(0))
    assert len(keys) == count


def test_pfedme_averages_over_the_draws_of_its_inner_steps():
    """On one draw the loss would be 0, or twice what it is on average, in all of them."""

    def kept_or_dropped(w, batch, key):
        return jnp.where(jax.random.bernoulli(key, shape=batch.shape[:1]), 2 * w, 0)

    algorithm = fs.pfedme(
        kept_or_dropped, fs.LocalTraining(1, 4), 1e-3, inner_lr=1.0, inner_steps=200, eta=1.0
    )
    own = jax.jit(lambda key: after_a_step(algorithm, key).own)(jax.random.key(0))
    # 200 steps of rate 1 along a slope of 1 on average over 4 draws, barely drawn back.
    steps = (1 - (1 - 1e-3) ** 200) / 1e-3
    assert 1 - float(own) == pytest.approx(steps, rel=0.1)
