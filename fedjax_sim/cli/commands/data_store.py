"""`fedjax-sim data store`: a data set and its split as a folder that runs read as they train."""

import argparse
from pathlib import Path

from fedjax_sim.cli.options import add_setting, setting_options
from fedjax_sim.cli.values import setting
from fedjax_sim.settings import stores
from fedjax_sim.settings.options import VOCABULARY, Vocabulary

HELP = "write a data set and its split as a folder for --data, read while it is trained on"


def add_options(parser: argparse.ArgumentParser, vocabulary: Vocabulary = VOCABULARY) -> None:
    """Adds the options of the data and of the folder."""
    add_setting(parser, vocabulary, vocabulary.of_data, {})
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        required=True,
        help="a new folder for it",
    )


def call(options: argparse.Namespace) -> int:
    """Splits and writes."""
    out: Path = options.out
    resolved = setting(setting_options(options), options.vocabulary).resolved()
    store = stores.write(resolved.data, out)
    print(f"Wrote {store.num_clients} clients, {store.total_num_examples} training examples")
    print(f"fedjax-sim run --data {out}{'' if '/' in str(out) else '/'}  trains on them")
    return 0
