"""The contract's cells of `sharded`, over eight devices instead of the session's two."""

import os
import subprocess
import sys

import pytest

from tests.conftest import DEVICES
from tests.helpers import snippets


@pytest.mark.slow
def test_the_contract_holds_over_eight_devices():
    """More devices than a cohort has slots, so that some have no client at all."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-n", "0", "-q"]
    cells = ["-m", "slow or not slow", "-k", "sharded", "tests/test_contract.py"]
    environment = {**os.environ, DEVICES: "8", "PYTHONPATH": str(snippets.ROOT)}
    # It compares to rounding, and compiles as the quick tests do, which takes less time.
    environment.pop("XLA_FLAGS", None)
    finished = subprocess.run(
        [*command, *cells],
        cwd=snippets.ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stdout[-3000:]
