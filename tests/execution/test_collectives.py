"""What a sharded round sends between devices, by the text of the compiled program."""

import json
import os
import subprocess
import sys

import pytest

SECONDS = 500  # that compiling may take, of a machine with much else to do


def formula(parameters, total, of_a_client, m):
    """Bytes that a round of float32 sums over the devices, whatever their number.

    The mean of the updates, what the algorithm totals, the loss and its weight, and for each slot
    its client's state; as int32 whether each slot counted and was finite, and the lanes' steps.
    """
    return 4 * (parameters + total + m * of_a_client + 2), 4 * (2 * m + 1)


@pytest.mark.slow
def test_a_round_sends_what_the_formula_says():
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    run = subprocess.run(
        [sys.executable, "-m", "tests.helpers.collectives", "2", "3", "5", "8"],
        env={**os.environ, "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    cases = json.loads(run.stdout)
    assert {devices for devices, *_ in cases} == {2, 3, 5, 8}
    for _, parameters, m, name, operations in cases:
        # SCAFFOLD totals the change of its control variates, and keeps one for each client.
        beside = (parameters, parameters) if name == "scaffold" else (0, 0)
        expected = [["all-reduce", size] for size in formula(parameters, *beside, m)]
        assert operations == expected, name
