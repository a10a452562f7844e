"""`fedjax-sim data describe`: a split in figures, and its picture."""

import argparse
from pathlib import Path

from fedjax_sim import partition
from fedjax_sim.cli.options import add_setting, setting_options
from fedjax_sim.cli.values import setting
from fedjax_sim.settings import splits
from fedjax_sim.settings.options import VOCABULARY, Vocabulary
from fedjax_sim.settings.resolved import ResolvedSetting

HELP = "describe a data set and its split over clients"
DESCRIPTION = (
    "Splits a data set as a run with these options does, prints the clients' sizes and how far "
    "their labels are from those of all, and draws them."
)
_HELPS = {
    "validation": "hold out this share of each client's training examples, as a run with it does, "
    "and describe the rest (default: none)",
}
_SUFFIXES = (".png", ".svg", ".pdf")


def add_options(parser: argparse.ArgumentParser, vocabulary: Vocabulary = VOCABULARY) -> None:
    """Adds the options of the data and of the picture."""
    add_setting(parser, vocabulary, vocabulary.of_data, _HELPS)
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="a picture of it: .png, .svg or .pdf"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the picture in --out")


def call(options: argparse.Namespace) -> int:
    """Splits, prints, draws."""
    out: Path | None = options.out
    if out is not None and out.suffix not in _SUFFIXES:
        raise ValueError(f"out must be a file {', '.join(_SUFFIXES)}; got {out}")
    if out is not None and out.exists() and not options.overwrite:
        raise ValueError(f"out {out} exists already; give --overwrite or another name")
    resolved = setting(setting_options(options), options.vocabulary).resolved()
    dealt = splits.split(resolved.data)
    labels = dealt.dataset.train["y"]
    by_label = dealt.dataset.num_classes is not None and labels.ndim == 1
    description = partition.describe(
        dealt.client_ids, labels if by_label else None, resolved.clients
    )
    for line in _lines(resolved, description, options.vocabulary):
        print(line)
    if out is not None:
        from fedjax_sim import plots

        plots.save(plots.split(description), out)
        print(f"Wrote {out}")
    return 0


def _lines(
    resolved: ResolvedSetting, description: partition.Description, vocabulary: Vocabulary
) -> list[str]:
    of_data = vocabulary.of_data
    values = {name: value for name, value in resolved.values().items() if name in of_data}
    fixed = ("dataset", "partition", "clients")
    how = ", ".join(f"{name}={value}" for name, value in values.items() if name not in fixed)
    lines = [
        f"{resolved.dataset} ({resolved.partition}; {how}): {description.num_clients} clients, "
        f"{description.num_examples} training examples",
        f"examples of a client: {description.smallest} to {description.largest}, "
        f"median {description.median:g}, mean {description.mean:.1f}, "
        f"coefficient of variation {description.variation:.2f}"
        + (f"; {description.empty} clients have none" if description.empty else ""),
    ]
    if description.classes is not None:
        lines.append(
            f"classes of a client: {description.classes_per_client:.1f} of "
            f"{len(description.classes)} on average; its labels differ from all by a total "
            f"variation of {description.total_variation:.3f} on average (0: the same; 1: nothing "
            "in common)"
        )
    return lines
