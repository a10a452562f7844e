"""Spans of time and sizes as messages have them."""


def span_of(seconds: float) -> str:
    """A number of seconds as a text, in the unit that fits it.

    >>> span_of(61.3), span_of(600), span_of(9000)
    ('61 s', '10 min', '2.5 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def gibibytes(size: float) -> str:
    """A number of bytes as a text.

    >>> gibibytes(3 * 2**29)
    '1.5 GiB'
    """
    return f"{size / 2**30:.3g} GiB"
