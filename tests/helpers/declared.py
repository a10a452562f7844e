"""Writes docs/declared.md: `python -m tests.helpers.declared > docs/declared.md`."""

from fedjax_sim.settings.rooms import declarations

ROOMS = {
    "algorithm": "Algorithms",
    "mode": "Aggregation rules",
    "sampler": "Samplers",
    "dataset": "Data sets",
    "partition": "Splits",
    "model": "Models",
    "before": "Before a rule",
    "attack": "Attacks",
    "compress": "Codecs",
    "privacy": "Privacy",
    "clock": "Clocks",
    "availability": "Availability",
    "asynchronous": "Asynchronous rounds",
}
BEGINNING = """\
# What a setting may name

Each name below is a value of an option of the [command line](command-line.md) and of a key of its
TOML files, and so are the options that belong to it. Those marked * are traced: a sweep over them
shares one compiled program. Defaults are those of a setting; in Python a factory has its own. The
page is written from what the files declare
(`python -m tests.helpers.declared > docs/declared.md`), and a test compares the two.
"""


def option_words(option):
    """`name` = default: what it is (range)."""
    name = f"`{option.name}`{'*' if option.traced else ''}"
    default = "" if option.default is None else f" = {option.default}"
    allowed = ", ".join(option.choices) or (option.range.says if option.range else "")
    return f"{name}{default}: {option.help}{f' ({allowed})' if allowed else ''}"


def row(declaration):
    """A line of a table."""
    options = "; ".join(option_words(option) for option in declaration.options)
    # A bar, as of a norm, would end the cell.
    cells = (f"`{declaration.name}`", declaration.help, options)
    escaped = (cell.replace("|", r"\|") for cell in cells)
    return f"| {' | '.join(escaped)} |"


def page():
    """The whole page."""
    parts = [BEGINNING]
    for setting, title in ROOMS.items():
        rows = [row(declaration) for declaration in declarations(setting).values()]
        if rows:
            head = [
                f"## {title}: `--{setting}`",
                "",
                "| name | what it is | options |",
                "|---|---|---|",
            ]
            parts.append("\n".join([*head, *rows, ""]))
    return "\n".join(parts)


if __name__ == "__main__":
    print(page(), end="")
