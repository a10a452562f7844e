"""The words of figures: names of lines, columns and configurations."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any


def label(configuration: Mapping[str, Any], names: Sequence[str]) -> str:
    """A configuration in words; a string is shown without its name.

    >>> label({"mode": "selected", "lr": 0.1, "mu": 0.0}, ["mode", "lr"])
    'selected, lr=0.1'
    >>> label({"mode": "selected"}, ["lr", "mu"])  # what others have
    'without lr, mu'
    """
    parts = []
    for name in names:
        if name in configuration:
            value = configuration[name]
            text = f"{value:.4g}" if isinstance(value, float) else str(value)
            parts.append(text if isinstance(value, str) else f"{name}={text}")
    return ", ".join(filter(None, parts)) or (f"without {', '.join(names)}" if names else "")


def labels(configurations: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[str]:
    """As `label`, with names and all digits where two different configurations would read alike.

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
    """The parts that all names of columns share.

    >>> stem(["train_loss", "test_loss"]), stem(["clients_accuracy_mean", "clients_accuracy_p10"])
    ('loss', 'clients_accuracy')
    """
    first, *others = [name.split("_") for name in names]
    return "_".join(part for part in first if all(part in parts for parts in others))


def tails(names: Sequence[str]) -> list[str]:
    """The part of each name that not all of several names share.

    >>> tails(["train_loss", "test_loss"]), tails(["loss"])
    (['train', 'test'], ['loss'])
    """
    shared = stem(names).split("_") if len(names) > 1 else []
    remainders = [
        "_".join(part for part in name.split("_") if part not in shared) for name in names
    ]
    return remainders if all(remainders) else list(names)


def plain(text: str) -> str:
    """A text that matplotlib takes neither for a formula nor, by a leading "_", for a hidden label.

    >>> plain("_$x$")
    ' _\\\\$x\\\\$'
    """
    return (" " if text.startswith("_") else "") + text.replace("$", r"\$").replace("\n", " ")


def unescaped(text: str) -> str:
    """The text that `plain` was given, up to spaces and line breaks.

    >>> unescaped(plain("_$x$"))
    '_$x$'
    """
    return text.replace(r"\$", "$").strip()


def span(numbers: Collection[int]) -> str:
    """The numbers' range in words.

    >>> span({4}), span({2, 4})
    ('4', '2 to 4')
    """
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low} to {high}"
