"""A run in plain values, and the experiment that it describes."""
