"""The styles of lines: colours, dashes and markers, of aggregation modes and of configurations."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

# Okabe and Ito's colours, two of them replaced by darker ones. Colours that look alike in grey have
# different dashes and markers.
STYLES: tuple[dict[str, Any], ...] = (
    {"color": "#0072b2", "linestyle": "-", "marker": "o"},
    {"color": "#e69f00", "linestyle": (0, (6, 1.5)), "marker": "s"},
    {"color": "#009e73", "linestyle": (0, (1, 1.2)), "marker": "^"},
    {"color": "#d55e00", "linestyle": (0, (5, 1.5, 1, 1.5)), "marker": "D"},
    {"color": "#cc79a7", "linestyle": "-", "marker": "v"},
    {"color": "#3b3b3b", "linestyle": (0, (3, 1)), "marker": "P"},
    {"color": "#56b4e9", "linestyle": (0, (8, 2, 1, 2, 1, 2)), "marker": "X"},
    {"color": "#7a5195", "linestyle": (0, (1, 2.5)), "marker": "p"},
)

# Widest and palest first, so that all of several curves that coincide are seen, in greyscale too.
MODE_STYLES: dict[str, dict[str, Any]] = {
    "selected": {"color": "#9ecae1", "linestyle": "-", "linewidth": 6.0},
    "unbiased": {"color": "#756bb1", "linestyle": "-", "linewidth": 2.6, "marker": "D"},
    "uniform": {"color": "#00441b", "linestyle": (0, (1, 1.6)), "linewidth": 1.8, "marker": "^"},
    "all_clients": {"color": "#b30000", "linestyle": (0, (6, 2)), "linewidth": 1.8, "marker": "s"},
}

_DASHES: tuple[Any, ...] = ("-", (0, (4, 1.8)), (0, (1, 1.4)), (0, (6, 1.5, 1, 1.5)))


def of_configurations(configurations: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A style for each line: that of its aggregation mode, if each line has another mode.

    If two hyper-parameters vary, one chooses colour and marker, and the other the dashes.
    """
    modes = [configuration.get("mode") for configuration in configurations]
    if len(set(map(str, modes))) == len(modes) and all(mode in MODE_STYLES for mode in modes):
        order = list(MODE_STYLES)
        styles_of_lines = [
            {**MODE_STYLES[str(m)], "zorder": 2 + order.index(str(m))} for m in modes
        ]
    elif (places := _two_factors(configurations)) is not None:
        styles_of_lines = [
            {**STYLES[i], "linestyle": _DASHES[j], "linewidth": 1.8, "zorder": 3 + line}
            for line, (i, j) in enumerate(places)
        ]
    else:
        styles_of_lines = [
            {**style, "linewidth": 1.8, "zorder": 3 + i} for i, style in enumerate(STYLES)
        ]
    return [{"markersize": 4.5, **style} for style in styles_of_lines[: len(modes)]]


def of_modes(modes: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The style of each mode, in drawing order; a mode without one of its own gets a free colour.

    >>> [*of_modes(["mine", "uniform", "selected"])]
    ['selected', 'uniform', 'mine']
    """
    other_modes = dict.fromkeys(mode for mode in modes if mode not in MODE_STYLES)
    # The first colour is left out: it is a blue, as the one of `selected` is.
    spare = {
        mode: {**STYLES[1 + i % (len(STYLES) - 1)], "linewidth": 1.8}
        for i, mode in enumerate(other_modes)
    }
    return {mode: style for mode, style in {**MODE_STYLES, **spare}.items() if mode in modes}


def _two_factors(configurations: Sequence[Mapping[str, Any]]) -> list[tuple[int, int]] | None:
    """Each line's indices (colour, dashes), if just two hyper-parameters vary and there are enough.

    >>> _two_factors([{"lr": 1, "b": 0}, {"lr": 1, "b": 9}, {"lr": 2, "b": 0}, {"lr": 3, "b": 0}])
    [(0, 0), (0, 1), (1, 0), (2, 0)]
    """
    values: dict[str, list[str]] = {}
    for name in dict.fromkeys(name for configuration in configurations for name in configuration):
        distinct = [*dict.fromkeys(configuration.get(name) for configuration in configurations)]
        if all(isinstance(value, (int, float)) for value in distinct):
            distinct.sort()
        if len(distinct) > 1:
            values[name] = [*map(repr, distinct)]
    if len(values) != 2:
        return None
    dashed, coloured = sorted(values, key=lambda name: len(values[name]))
    if len(values[dashed]) > len(_DASHES) or len(values[coloured]) > len(STYLES):
        return None
    places = [
        (
            values[coloured].index(repr(configuration.get(coloured))),
            values[dashed].index(repr(configuration.get(dashed))),
        )
        for configuration in configurations
    ]
    return places if len(set(places)) == len(places) else None


def with_marker(style: Mapping[str, Any], x: np.ndarray) -> dict[str, Any]:
    """The style of a line, with a marker if it is one point, which would otherwise be invisible."""
    return {**style} if len(x) > 1 else {"marker": "o", "markersize": 7, **style}
