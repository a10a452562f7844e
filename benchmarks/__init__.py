"""Measurements. Speed is never asserted on a clock in a test; it is recorded here."""
