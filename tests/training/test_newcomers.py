"""What a newcomer mistakes is answered in the package's words, and not by what is below it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs

DATA = fs.FederatedData.from_clients(
    [{"x": np.ones((3, 2), np.float32), "y": np.array([0, 1, 0])} for _ in range(2)]
)
MODEL = fs.models.logistic_regression((2,), 2)
LOSS = fs.models.cross_entropy(MODEL.apply)
PARAMS = MODEL.init(jax.random.key(0))
FEDAVG = fs.fedavg(LOSS, optax.sgd(0.1), fs.LocalTraining())
CLIENT = FEDAVG.client


def round_of(algorithm):
    state = fs.init(algorithm, PARAMS, DATA)
    cohort = fs.sampling.everyone().sample(jax.random.key(0), 0, DATA)
    return jax.eval_shape(fs.make_round(algorithm), jax.random.key(0), state, DATA, cohort)


def with_client(**functions):
    return FEDAVG._replace(client=CLIENT._replace(**functions))


def with_state(*arguments):
    output = CLIENT.finish(*arguments)
    return output._replace(client_state={"seen": jnp.zeros(2)})


MISTAKES = {
    "params are the function that makes them": (
        lambda: fs.init(FEDAVG, MODEL.init, DATA),
        r"params must be a model's params, as model\.init\(key\) returns; got the function",
    ),
    "a seed is no key": (
        lambda: MODEL.init(0),
        r"key must be a key, as jax\.random\.key\(0\) makes; got 0",
    ),
    "a state is no model": (
        lambda: fs.evaluate(LOSS, fs.init(FEDAVG, PARAMS, DATA), DATA),
        r"params must be a model's params, as state\.params",
    ),
    "mesh and tree change places": (
        lambda: fs.execution.replicate(fs.execution.cores(1), (DATA, PARAMS)),
        r"replicate takes \(tree, mesh\), a jax\.sharding\.Mesh; got \(",
    ),
    "a step of two arguments": (
        lambda: fs.init(with_client(step=lambda carry, batch: carry), PARAMS, DATA),
        r"client\.step must take \(carry, message, client_state, batch, mask, key\)",
    ),
    "a server's update of the model alone": (
        lambda: fs.init(FEDAVG._replace(server_update=lambda w: w), PARAMS, DATA),
        r"server_update must take \(server, update, total, context\)",
    ),
    "finish returns the update": (
        lambda: round_of(with_client(finish=lambda *arguments: CLIENT.finish(*arguments).update)),
        r"client\.finish must return an fs\.ClientOutput, as fs\.ClientOutput\(update\); got dict",
    ),
    "a client's state that nobody began": (
        lambda: round_of(with_client(finish=with_state)),
        r"init_client's at first; it makes float32\[2\] in .*seen.* of nothing",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named(mistake):
    call, message = MISTAKES[mistake]
    with pytest.raises(ValueError, match=message):
        call()
