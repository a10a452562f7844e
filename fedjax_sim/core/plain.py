"""The plain form of a program, by which saved runs are known again.

Some of what the simulator traces has two forms whose bits are the same, one of which is faster.
The checksum of a saved run is of the plain form, so that either form may continue the other.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_is_plain = ContextVar("_is_plain", default=False)


@contextmanager
def plainly() -> Iterator[None]:
    """Within it programs are traced in their plain form, for a checksum."""
    token = _is_plain.set(True)
    try:
        yield
    finally:
        _is_plain.reset(token)


def is_plain() -> bool:
    """Whether the caller's program is traced in its plain form."""
    return _is_plain.get()
