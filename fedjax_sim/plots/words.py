"""What figures say: names of lines, columns and configurations."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any


def label(configuration: Mapping[str, Any], names: Sequence[str]) -> str:
    """A configuration in words; strings stand for themselves.

    >>> label({"mode": "selected", "lr": 0.1, "mu": 0.0}, ["mode", "lr"])
    'selected, lr=0.1'
    >>> label({"mode": "selected"}, ["lr", "mu"])  # what others have
    'without lr, mu'
    """
    parts = []
    for name in names:
        if name in configuration:
            value = configuration[name]
            said = f"{value:.4g}" if isinstance(value, float) else str(value)
            parts.append(said if isinstance(value, str) else f"{name}={said}")
    return ", ".join(filter(None, parts)) or (f"without {', '.join(names)}" if names else "")


def labels(configurations: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[str]:
    """As `label`, with names and all digits where two that differ would read alike.

    >>> labels([{"a": "x"}, {"b": "x"}, {"b": "y"}], ["a", "b"])
    ["a='x'", "b='x'", 'y']
    """
    chosen = [{name: x[name] for name in names if name in x} for x in configurations]
    texts = [label(values, names) for values in chosen]
    meant: dict[str, set[str]] = {}
    for text, values in zip(texts, chosen, strict=True):
        meant.setdefault(text, set()).add(repr(values))
    full = [", ".join(f"{name}={x!r}" for name, x in values.items()) for values in chosen]
    return [
        text if len(meant[text]) == 1 else spelled or text
        for text, spelled in zip(texts, full, strict=True)
    ]


def stem(names: Sequence[str]) -> str:
    """What names of columns share.

    >>> stem(["train_loss", "test_loss"]), stem(["clients_accuracy_mean", "clients_accuracy_p10"])
    ('loss', 'clients_accuracy')
    """
    first, *rest = [name.split("_") for name in names]
    return "_".join(part for part in first if all(part in other for other in rest))


def tails(names: Sequence[str]) -> list[str]:
    """What of each name is its own, where there are several.

    >>> tails(["train_loss", "test_loss"]), tails(["loss"])
    (['train', 'test'], ['loss'])
    """
    shared = stem(names).split("_") if len(names) > 1 else []
    own = ["_".join(part for part in name.split("_") if part not in shared) for name in names]
    return own if all(own) else list(names)


def plain(text: str) -> str:
    """Text that is not taken for a formula, nor for a name to leave out.

    >>> plain("_$x$")
    ' _\\\\$x\\\\$'
    """
    return (" " if text.startswith("_") else "") + text.replace("$", r"\$").replace("\n", " ")


def unescaped(text: str) -> str:
    """What `plain` was given, but for spaces and line breaks.

    >>> unescaped(plain("_$x$"))
    '_$x$'
    """
    return text.replace(r"\$", "$").strip()


def span(numbers: Collection[int]) -> str:
    """A number, or from which to which.

    >>> span({4}), span({2, 4})
    ('4', '2 to 4')
    """
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low} to {high}"
