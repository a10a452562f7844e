"""Whether the processes of a run were all given the same."""

import json
from collections.abc import Mapping
from typing import Any

from jax.extend.core import ClosedJaxpr

from fedjax_sim.core.files import to_json
from fedjax_sim.core.types import PyTree
from fedjax_sim.host.fingerprint import program_checksum
from fedjax_sim.host.manifest import unlike
from fedjax_sim.host.processes import Processes


def check_same(
    processes: Processes, facts: Mapping[str, Any], step: ClosedJaxpr, known: PyTree
) -> None:
    """Refuses to run what differs between processes, which would wait for each other for ever.

    Args:
      facts: what identifies the run, as a resume compares it.
      step: the round as it is executed, which a resume may have otherwise.
      known: arrays that the facts have checksums of.

    Raises:
      ValueError: saying what differs, on all of them.
    """
    # Machines may differ in their cores: what each computes is decided by the mesh.
    versions = {name: x for name, x in facts["versions"].items() if name != "platform"}
    with processes.together():
        mine = json.loads(to_json({**facts, "versions": versions}))
        mine = {"facts": mine, "round": program_checksum(step, known)}
    first, *others = processes.gather(mine)
    for index, other in zip(processes.indices[1:], others, strict=True):
        places = f"at process {processes.indices[0]}", f"at process {index}"
        differs = unlike(first["facts"], other["facts"], places)
        if not differs and first["round"] != other["round"]:
            differs = f"execution, or how it runs a round, is another {' than '.join(places[::-1])}"
        if differs:
            raise ValueError(f"experiment must be the same on all processes of its mesh; {differs}")
