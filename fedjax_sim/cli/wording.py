"""Errors in a command's own words: its options in place of Python's arguments."""

import re
from collections.abc import Collection, Iterable, Mapping

# Python's name of an argument -> the options that set it; the first one that a command has counts.
_OTHERWISE = {
    "num_rounds": ("rounds",),
    "num_clients": ("clients",),
    "num_regions": ("clients",),
    "n": ("cores",),
    "mode": ("modes",),
    "aggregation": ("mode", "modes"),
    "fraction": ("fractions",),
}


# A choice as Python has it, as fs.aggregation.selected or fs.sampling.bernoulli(q), and a further
# one behind it, as ".uniform". A setting has its name alone.
_ROOMS = "aggregation|asynchronous|attacks|clocks|compression|privacy|sampling(?:[.]traces)?"
_CHOICE = re.compile(rf"\bfs[.](?:{_ROOMS})[.]([a-z_]+)\b(?:[(][^()]*[)])?")
_FURTHER = re.compile(r"(?<= )[.]([a-z_]+)\b(?:[(][^()]*[)])?")


def in_options(
    message: str,
    flags: Mapping[str, str],
    texts: Collection[str] = (),
    elsewhere: Collection[str] = (),
) -> str:
    """A message with a command's options for the arguments that it names.

    A name with an underscore is no English word, so it is an argument wherever it stands. One
    without is an argument at the beginning of a message, after "X belongs to", and in "X is A there
    and B here". Names that are quoted, dotted or assigned stay as they are, and so does the list of
    known names in a message that begins with "unknown". A choice that is dotted, as
    `fs.aggregation.selected`, is its name alone.

    Args:
      flags: argument -> option.
      texts: paths that the user wrote, which may look like a name.
      elsewhere: names that the user wrote in a file or an axis, and not as options.

    >>> flags = {"client_lr": "--client-lr", "mu": "--mu", "rounds": "--rounds", "out": "--out"}
    >>> in_options("num_rounds must be at least the 7 that are done in out a/mu; got 6", flags,
    ...            ["a/mu"])
    '--rounds must be at least the 7 that are done in --out a/mu; got 6'
    >>> in_options("client_lr must be positive; got -1", flags, elsewhere=["client_lr"])
    'client_lr must be positive; got -1'
    >>> in_options("mu must be 0 under fs.aggregation.median() or .krum(f); got 1", flags)
    '--mu must be 0 under median or krum; got 1'
    """
    if message.startswith("unknown "):
        return message
    if _CHOICE.search(message):
        message = _FURTHER.sub(r"\1", _CHOICE.sub(r"\1", message))
    flag_of = {name: flag for name, flag in flags.items() if name not in elsewhere}
    for name, options in _OTHERWISE.items():
        for option in options:
            if name not in flags and option in flag_of:
                flag_of.setdefault(name, flag_of[option])
    # Where both names are given, as in "give overwrite (--overwrite)", the option's is enough.
    message = re.sub(r"\b\w+ \((--[\w-]+)\)", r"\1", message)
    written = "|".join(re.escape(text) for text in sorted(texts, key=len, reverse=True) if text)
    names = "|".join(map(re.escape, sorted(flag_of, key=len, reverse=True)))
    if not names:
        return message
    of_text = rf"(?P<out>(?<![\w.-])out )?(?<![\w/])(?P<text>{written})(?!\w)|" if written else ""
    pattern = rf"{of_text}(?<![\w.'\"/-])(?P<name>{names})(?![\w.'\"/=-]\w|['\"=\w])"

    def replaced(match: re.Match[str]) -> str:
        groups = match.groupdict()
        if groups.get("text") is not None:
            return flag_of.get("out", "out") + " " + groups["text"] if groups["out"] else match[0]
        name, before, after = match["name"], message[: match.start()], message[match.end() :]
        is_argument = (
            "_" in name
            or not before
            or (before.endswith("belongs to ") and before.split()[0] in flag_of)
            or (before.endswith((": ", "; ")) and re.match(r" is \S.* there and ", after))
        )
        return flag_of[name] if is_argument else match[0]

    return re.sub(pattern, replaced, message)


def how_to_assign(text: str, flags: Iterable[str]) -> str:
    """How to write a stray NAME=VALUE as options; "" for a text of any other form.

    Args:
      flags: of the command.

    >>> how_to_assign("epochs=1,5", ["--epochs", "--grid"])
    '; write each axis behind an option of its own, as --grid epochs=1,5'
    >>> how_to_assign("epochs=5", ["--epochs"])
    '; an option is written --epochs 5'
    """
    name, equals, value = text.partition("=")
    if not equals or not name.replace("-", "_").isidentifier():
        return ""
    if "--grid" in flags:
        return f"; write each axis behind an option of its own, as --grid {text}"
    return f"; an option is written --{name.replace('_', '-')} {value}"
