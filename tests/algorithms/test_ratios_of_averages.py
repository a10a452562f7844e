"""Servers that multiply or divide averages: NumPy's numbers under all rules and strategies."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from tests.conftest import MESH, SIZES, flat, linear_loss, several_models, zeros
from tests.helpers.reference import Server
from tests.helpers.rules import RULES, any_rule

LR, LOCAL = 0.05, fs.LocalTraining(2, 4, shuffle=False)
ALGORITHMS = {
    "fednova": lambda: fs.fednova(linear_loss, LR, LOCAL, momentum=0.5, mu=2.0),
    "qfedavg": lambda: fs.qfedavg(linear_loss, LR, LOCAL, q=0.5),
    "ifca": lambda: fs.ifca(linear_loss, optax.sgd(LR), LOCAL, num_models=2),
}
STRATEGIES = {
    "packed2": fs.execution.packed(2),
    "vmapped": fs.execution.vmapped(),
    "packed1": fs.execution.packed(1),
    "packed4": fs.execution.packed(4),
    "sharded": fs.execution.sharded(MESH, fs.execution.packed(2)),
}
# Five rounds of four clients of 0 to 23 examples; the last of each drops out.
IDS = ((1, 4, 5, 7), (5, 0, 3, 1), (2, 7, 1, 5), (6, 4, 7, 0), (5, 1, 4, 3))
REPORTS, INCLUSION = (True, True, True, False), (0.5, 0.25, 0.8, 0.5)


@pytest.mark.parametrize(
    "strategy",
    ["packed2", *(pytest.param(x, marks=pytest.mark.slow) for x in list(STRATEGIES)[1:])],
)
@pytest.mark.parametrize("name", ALGORITHMS)
def test_five_rounds_under_all_rules(clients, data, name, strategy):
    algorithm = ALGORITHMS[name]()
    params = several_models() if name == "ifca" else zeros()
    before = fs.init(algorithm, params, data)
    if strategy == "sharded":
        data, before = fs.execution.replicate((data, before), MESH)

    @jax.jit
    def step(number, state, ids):
        cohort = fs.Cohort(
            ids, reports=jnp.array(REPORTS), inclusion=jnp.array(INCLUSION, jnp.float32)
        )
        round_fn = fs.make_round(algorithm, any_rule(number), STRATEGIES[strategy])
        return round_fn(jax.random.key(0), state, data, cohort)[0]

    first, chosen = {}, set()
    for number, rule in enumerate(RULES):
        reference = Server(
            name, clients, SIZES, 5, LR, mu=2.0, momentum=0.5, q=0.5, start=flat(params)
        )
        state = before
        for ids in IDS:
            if name == "ifca":
                chosen |= {reference.cluster(k) for k in ids[:3] if SIZES[k]}
            reference.round(
                rule, ids, [True] * 4, REPORTS, INCLUSION, np.ones(4), 2, 4, LOCAL.order
            )
            state = step(number, state, jnp.array(ids))
            np.testing.assert_allclose(
                flat(state.params), reference.w, rtol=1e-4, atol=1e-5, err_msg=rule
            )
            first.setdefault(rule, flat(state.params))
    assert name != "ifca" or chosen == {0, 1}  # else nothing is told apart
    share = sum(SIZES[k] for k in IDS[0][:3]) / sum(SIZES)
    start = flat(params)
    np.testing.assert_allclose(
        first["all_clients"], start + share * (first["selected"] - start), atol=1e-5
    )
