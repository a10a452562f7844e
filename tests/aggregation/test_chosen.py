"""One rule of several by a traced number is that rule, in every number that a round reports."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from tests.conftest import federation, linear_loss, zeros

RULES = {name: getattr(fs.aggregation, name) for name in ("selected", "all_clients", "uniform")}
RULES["unbiased"] = fs.aggregation.unbiased
# One client drops out, one slot is padding, and client 4 is there twice.
COHORT = fs.Cohort(
    client_ids=jnp.array([0, 4, 4, 6, 1, 3]),
    mask=jnp.array([True, True, True, True, True, False]),
    reports=jnp.array([True, True, True, True, False, True]),
    inclusion=jnp.array([0.5, 0.75, 0.75, 0.25, 0.5, 0.5]),
)


def diverging_loss(params, batch, key):
    """Not finite for the examples of a client that has a mark."""
    return linear_loss(params, batch, key) * jnp.where(batch["x"][:, 0] > 5, jnp.nan, 1.0)


@pytest.fixture(scope="module")
def marked(clients):
    """The federation, whose client 6 has the mark."""
    marks = [np.array([11.0 * (k == 6), 0, 0, 0]) for k in range(len(clients))]
    return federation([(x + mark, y) for (x, y), mark in zip(clients, marks, strict=True)])


@pytest.mark.parametrize("names", [tuple(RULES), ("selected", "uniform"), ("all_clients",) * 2])
def test_a_traced_number_is_the_rule_itself(marked, names):
    algorithm = fs.fedavg(diverging_loss, optax.sgd(0.1), fs.LocalTraining(epochs=2, batch_size=4))
    state = fs.init(algorithm, zeros(), marked)

    def after_a_round(rule):
        round_fn = fs.make_round(algorithm, aggregation=rule, nonfinite="drop")
        new_state, metrics = round_fn(jax.random.key(0), state, marked, COHORT)
        return new_state.params, metrics

    rules = [RULES[name] for name in names]
    traced = jax.jit(jax.vmap(lambda index: after_a_round(fs.aggregation.chosen(index, *rules))))
    together = traced(jnp.arange(float(len(rules))))
    for index, rule in enumerate(rules):
        alone = jax.jit(lambda rule=rule: after_a_round(rule))()
        assert int(alone[1].nonfinite) == 1
        for x, y in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(x[index], y, rtol=2e-6, atol=1e-7)


def test_a_known_number_is_the_rule():
    assert fs.aggregation.chosen(1, *RULES.values()) is RULES["all_clients"]
    assert fs.aggregation.chosen(2.0, *RULES.values()) is RULES["uniform"]


@pytest.mark.parametrize(
    ("index", "rules", "message"),
    [
        (0, (), "at least one rule; got none"),
        (4, RULES.values(), "index must be a whole number from 0 to 3; got 4"),
        (0.5, RULES.values(), "index must be a whole number from 0 to 3; got 0.5"),
        (0, ["selected"], "chosen must be given rules, as fs.aggregation.selected; got .selected."),
    ],
)
def test_refused(index, rules, message):
    with pytest.raises(ValueError, match=message):
        fs.aggregation.chosen(index, *rules)


def test_a_rule_that_sees_all_updates_is_another_program(data):
    algorithm = fs.fedavg(linear_loss, optax.sgd(0.1), fs.LocalTraining(batch_size=4))
    state = fs.init(algorithm, zeros(), data)

    def after_a_round(index):
        rule = fs.aggregation.chosen(index, fs.aggregation.selected, fs.aggregation.median())
        return fs.make_round(algorithm, aggregation=rule)(jax.random.key(0), state, data, COHORT)

    with pytest.raises(ValueError, match="chosen must be of rules that average"):
        jax.jit(after_a_round)(0)


def test_privacy_refuses_a_denominator_that_may_be_the_realised_weight(data):
    algorithm = fs.fedavg(linear_loss, optax.sgd(0.1), fs.LocalTraining(batch_size=4))
    private = fs.privacy.central(algorithm, clip=1.0, noise_multiplier=1.0, expected_cohort=3)
    state = fs.init(private, zeros(), data)

    def after_a_round(index, *names):
        rule = fs.aggregation.chosen(index, *(RULES[name] for name in names))
        return fs.make_round(private, aggregation=rule)(jax.random.key(0), state, data, COHORT)

    with pytest.raises(ValueError, match="must have a fixed denominator"):
        jax.eval_shape(lambda i: after_a_round(i, "all_clients", "selected"), 0)
    jax.eval_shape(lambda i: after_a_round(i, "all_clients", "unbiased"), 0)
