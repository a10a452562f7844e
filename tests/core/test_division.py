"""Division of integers that are not negative: Python's own, in one operation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedjax_sim.core.division import num_groups, quotient, remainder
from fedjax_sim.host.fingerprint import traced

NUMBERS = st.integers(0, 2**31 - 1)


@given(NUMBERS, st.integers(1, 2**31 - 1))
def test_it_is_pythons(number, divisor):
    expected = (number // divisor, number % divisor, -(-number // divisor))
    for kind in (int, np.int32, jnp.int32):
        results = [f(kind(number), divisor) for f in (quotient, remainder, num_groups)]
        assert tuple(int(x) for x in results) == expected
    assert int(quotient(jnp.int32(number), jnp.int32(divisor))) == expected[0]


def test_shapes_and_types_are_those_of_the_operator():
    numbers, divisors = np.arange(6, dtype=np.int32).reshape(2, 3), np.array([1, 2, 3], np.int32)
    for number, divisor in ((numbers, divisors), (numbers[0], divisors[2:]), (7, divisors)):
        arrays = [jnp.asarray(x) for x in (number, divisor)]
        np.testing.assert_array_equal(quotient(*arrays), number // divisor)
        np.testing.assert_array_equal(remainder(*arrays), number % divisor)
        np.testing.assert_array_equal(num_groups(*arrays), -(-number // divisor))
    for function in (quotient, remainder, num_groups):
        assert function(jnp.int32(5), 2).dtype == jnp.int32
        assert function(jnp.uint32(5), 2).dtype == jnp.uint32
    assert num_groups(np.arange(3), 2).tolist() == [0, 1, 1]


def test_it_is_one_operation():
    for function, name in ((quotient, "div"), (remainder, "rem")):
        graph = jax.make_jaxpr(lambda n, f=function: f(n, 3))(jnp.int32(7))
        assert [equation.primitive.name for equation in graph.eqns] == [name]


@pytest.mark.parametrize(
    ("function", "pythons"),
    [
        (quotient, lambda number, divisor: number // divisor),
        (remainder, lambda number, divisor: number % divisor),
        (num_groups, lambda number, size: -(-number // size)),
    ],
)
@pytest.mark.parametrize("divisor", [3, jnp.int32(3)])
def test_a_checksum_is_that_of_pythons_operators(function, pythons, divisor):
    """By which runs are known that were saved while the operators were traced."""

    def checksum(divide):
        return traced(lambda number: {"result": divide(number, divisor)}, jnp.int32(7))

    assert checksum(function) == checksum(pythons)
    assert checksum(function) != checksum(lambda number, divisor: number + divisor)
