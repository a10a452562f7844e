"""Measurements. Speed is never asserted on a clock in a test; it is recorded in `records/`."""

from pathlib import Path

RECORDS = Path(__file__).parent / "records"
