"""The checksum of a program sees all that a change of its numbers may come from."""

import functools
import types
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

import fedjax_sim as fs
from fedjax_sim.host import host_code
from fedjax_sim.host.fingerprint import traced

VALUES = (2.0, 3.0)


def checksum(host):
    """Of a program that calls a function of the host."""
    return traced(lambda x: {"": jax.pure_callback(host, x, x)}, jnp.ones(3))[""]


def scaled(x, by, *, more=0.0):
    return np.float32(by) * x + np.float32(more)


@dataclass(frozen=True)
class Dataclass:
    by: float

    def __call__(self, x):
        return self.scale(x)

    def scale(self, x):
        return np.float32(self.by) * x


class Plain:
    def __init__(self, by):
        self.by = by

    scale = Dataclass.scale


class Slots:
    __slots__ = ("by",)

    def __init__(self, by):
        self.by = np.full(5000, by, np.float32)  # its printed form is cut short

    def __call__(self, x):
        return self.by[:3] * x


def defaults(value):
    def host(x, by=value):
        return np.float32(by) * x

    return host


def keyword_defaults(value):
    def host(x, *, by=value):
        return np.float32(by) * x

    return host


def closure(value):
    tables = {"by": [np.full(5000, value, np.float32)]}
    return lambda x: tables["by"][0][:3] * x


def namespace(value):
    options = types.SimpleNamespace(by=np.full(5000, value))
    return lambda x: np.float32(options.by[0]) * x


def remembered(value):
    @functools.lru_cache
    def by():
        return np.float32(value)

    return lambda x: by() * x


def written(source):
    """`host` of a module that says this, with another module beside it."""

    def make(value):
        other = types.ModuleType("settings_of_a_user")
        other.RATE, other.UNREAD = value, object()
        known = {"__name__": "module_of_a_user", "np": np, "settings": other, "VALUE": value}
        exec(source.format(value=value), known)
        return known["host"]

    return make


KINDS = {
    "a partial's argument": lambda value: functools.partial(scaled, by=value),
    "a partial of a partial": lambda value: functools.partial(
        functools.partial(scaled, by=1.0), more=value
    ),
    "the object of a method": lambda value: Plain(value).scale,
    "the fields of a dataclass": Dataclass,
    "what slots hold": Slots,
    "a default": defaults,
    "a keyword's default": keyword_defaults,
    "what is closed over": closure,
    "a namespace": namespace,
    "a function that remembers": remembered,
    "a method of C": lambda value: np.full(3, value, np.float32).__mul__,
    "a global number": written("def host(x):\n return np.float32(VALUE) * x"),
    "a global read by a function within": written(
        "def host(x):\n def inner(y):\n  return np.float32(VALUE) * y\n return inner(x)"
    ),
    "a global function": written(
        "def inner(x):\n return np.float32({value}) * x\ndef host(x):\n return inner(x)"
    ),
    "a global of a function that calls itself": written(
        "def host(x, n=3):\n return host(x, n - 1) if n else np.float32(VALUE) * x"
    ),
    "a module's attribute": written("def host(x):\n return np.float32(settings.RATE) * x"),
    "a method of a class": written(
        "class C:\n def __call__(self, x):\n  return np.float32({value}) * x\nhost = C()"
    ),
    "a class's attribute": written(
        "class A:\n _by = {value}\n"
        "class C(A):\n @property\n def by(self):\n  return np.float32(self._by)\n"
        "def host(x):\n return C().by * x"
    ),
    "a static method": written(
        "class C:\n @staticmethod\n def scale(x):\n  return np.float32({value}) * x\n"
        "def host(x):\n return C.scale(x)"
    ),
    "what an exception leads to": written(
        "def host(x):\n try:\n  return x.nothing\n"
        " except AttributeError:\n  return np.float32({value}) * x"
    ),
}


def checksums():
    """Of each kind and value, in the order in which they are written."""
    return [checksum(make(value)) for make in KINDS.values() for value in VALUES]


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_function_of_the_host_reads(kind):
    first, other = (checksum(KINDS[kind](value)) for value in VALUES)
    assert first != other
    assert checksum(KINDS[kind](VALUES[0])) == first


def test_what_a_function_of_the_host_does_not_read():
    source = "A = {value}\ndef host(x):\n return x.A if x is None else x"
    assert len({checksum(written(source)(value)) for value in VALUES}) == 1


def test_of_this_package_and_of_libraries_the_globals_are_not_followed():
    """Another version of them is told by its number."""
    for function in (fs.simulate, optax.sgd, functools.total_ordering):
        assert host_code.parts(function)[-1] == {}
    assert host_code.parts(scaled)[-1] == {"np": np}


def test_a_variable_without_a_value():
    """It has one when the program runs."""

    def host(x):
        return np.float32(later) * x

    before = checksum(host)
    later = 2.0
    assert before != checksum(host)


def test_what_is_written_to_memory_is_in_the_checksum():
    def added(factor, loop):
        def program(x):
            place = jax.new_ref(x)

            def add(i, nothing):
                place[...] += factor * x
                return nothing

            jax.lax.fori_loop(0, 3, add, 0) if loop else add(0, 0)
            return {"": place[...]}

        return traced(program, 1.0)[""]

    every = [added(factor, loop) for factor in VALUES for loop in (True, False)]
    assert len({*every}) == 4
    assert added(VALUES[0], loop=True) == every[0]


def test_devices_that_a_sum_is_over_are_in_the_checksum():
    """With nothing split, a body's shapes do not tell how many run it; its sum does."""

    def summed(number, name="all"):
        whole, mesh = PartitionSpec(), AbstractMesh((number,), (name,))
        body = jax.shard_map(
            lambda x: jax.lax.psum(x, name),
            mesh=mesh,
            in_specs=whole,
            out_specs=whole,
            check_vma=False,
        )
        return traced(lambda x: {"": body(x)}, jnp.ones(3))[""]

    assert summed(2) != summed(4)
    assert summed(2) == summed(2)
