"""Clocks: seconds by hand, draws that do not depend on K, and what is refused by name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_sim as fs
from fedjax_sim.core.clock import check_clock

KEY = jax.random.key(0)


def test_seconds_are_travel_and_steps():
    clock = fs.clocks.given([0.5, 2.0, 0.0], down=[10.0, 20.0, np.inf], up=5.0)
    ids, steps = jnp.array([2, 0, 1, 0]), jnp.array([7, 4, 3, 0])
    seconds = jax.jit(clock.seconds)(ids, steps, 100, 50)
    np.testing.assert_allclose(seconds, [10.0, 10 + 2 + 10, 5 + 6 + 10, 20.0])
    travel = clock.travel_seconds(ids, 100, jnp.array([0, 50, 50, 5]))
    np.testing.assert_allclose(travel, [0, 20, 15, 11])
    np.testing.assert_allclose(clock.training_seconds(ids, steps), [0, 2, 6, 0])


@pytest.mark.parametrize("infinite", [np.inf, np.float32(np.inf), np.asarray(np.inf), jnp.inf])
def test_an_infinite_bandwidth_of_any_type_takes_no_time(infinite):
    alike = fs.clocks.equal(2, bandwidth=infinite)
    spread = fs.clocks.lognormal(KEY, 2, 1.0, 0.0, bandwidth=infinite)
    for clock in (alike, spread):
        assert clock.seconds(jnp.arange(2), jnp.ones(2, jnp.int32), 9, 9).tolist() == [1.0, 1.0]


def test_bytes_beyond_32_bits_are_seconds():
    clock = fs.clocks.equal(2, step_seconds=0.0, bandwidth=2.0**30)
    seconds = clock.seconds(jnp.array([1]), jnp.array([9]), 2**40, np.int64(2**41))
    assert seconds.tolist() == [3 * 2.0**10]


def test_a_log_normal_clock_is_its_median_times_its_spread():
    alike = fs.clocks.lognormal(KEY, 5, 2.0, 0.0, 8.0)
    assert alike.step_seconds.tolist() == [2.0] * 5
    assert alike.down.tolist() == alike.up.tolist() == [8.0] * 5
    clock = fs.clocks.lognormal(KEY, 20_000, 2.0, 0.5, 8.0, 0.25)
    # Standard errors of mean and deviation of 20,000 normal draws, four of them allowed.
    for values, median, spread in ((clock.step_seconds, 2.0, 0.5), (clock.down, 8.0, 0.25)):
        z = np.log(np.asarray(values, np.float64) / median) / spread
        assert abs(z.mean()) < 4 / 20_000**0.5
        assert abs(z.std() - 1) < 4 / 40_000**0.5
    pair = np.corrcoef(np.log(clock.step_seconds), np.log(clock.down))[0, 1]
    assert abs(pair) < 4 / 20_000**0.5


def test_a_clients_speed_depends_on_the_key_and_its_id_alone():
    few, many = fs.clocks.lognormal(KEY, 3), fs.clocks.lognormal(KEY, 9)
    np.testing.assert_array_equal(few.step_seconds, many.step_seconds[:3])
    other = fs.clocks.lognormal(jax.random.key(1), 3)
    assert not np.any(few.step_seconds == other.step_seconds)


def test_the_numbers_of_a_clock_may_be_traced():
    def slowest(seconds, spread, bandwidth):
        clock = fs.clocks.lognormal(KEY, 4, seconds, spread, bandwidth, spread)
        return jnp.max(clock.seconds(jnp.arange(4), jnp.full(4, 3), 10, 10))

    spreads = jnp.array([0.0, 1.0])
    both = jax.jit(jax.vmap(slowest, (None, 0, None)))(2.0, spreads, 5.0)
    np.testing.assert_allclose(both[0], 10.0, rtol=1e-6)
    np.testing.assert_allclose(both[1], slowest(2.0, 1.0, 5.0), rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (
            lambda: fs.clocks.given([1.0, -1.0]),
            r"clock\.step_seconds must be at least 0 .*-1\.0 of",
        ),
        (lambda: fs.clocks.given([1.0, np.nan]), r"step_seconds .* got nan of client 1"),
        (lambda: fs.clocks.given([np.inf]), r"step_seconds must be .*finite; got inf"),
        (
            lambda: fs.clocks.given([1.0], down=0.0),
            r"clock\.down must be positive.*0\.0 of client 0",
        ),
        (lambda: fs.clocks.given([1.0, 1], up=[1, -2.0]), r"clock\.up must be .*-2\.0 of client 1"),
        (lambda: fs.clocks.given([1.0, 1], up=[1.0, 1, 1]), r"clock\.up must have shape \(K,\)"),
        (lambda: fs.clocks.given(1.0), r"clock\.step_seconds must have shape \(K,\); got \(\)"),
        (lambda: fs.clocks.lognormal(KEY, 0), "num_clients must be a whole number"),
        (lambda: fs.clocks.lognormal(KEY, 2, 0.0), "step_seconds must be finite and positive"),
        (lambda: fs.clocks.lognormal(KEY, 2, speed_spread=-1), "speed_spread .*at least 0; got -1"),
        (lambda: fs.clocks.lognormal(KEY, 2, bandwidth=0.0), "bandwidth must be .*positive"),
        (lambda: fs.clocks.lognormal(KEY, 2, bandwidth_spread=-1), "bandwidth_spread must be"),
        (lambda: fs.clocks.equal(2, -1.0), "step_seconds must be .*at least 0"),
        (lambda: fs.clocks.equal(2, bandwidth=-5), "bandwidth must be .*positive"),
        (lambda: check_clock(fs.clocks.equal), r"clock must be an fs\.Clock.* got equal"),
        (lambda: check_clock(3.0), r"clock must be an fs\.Clock.* got 3\.0"),
        (
            lambda: check_clock(fs.clocks.equal(3), 4),
            r"shape \(4,\), a number a client; got \(3,\)",
        ),
        (
            lambda: check_clock(fs.Clock(*[jnp.arange(3)] * 3)),
            "must be floating numbers; got int32",
        ),
    ],
)
def test_what_is_no_clock_is_refused_by_name(make, says):
    with pytest.raises(ValueError, match=says):
        make()
