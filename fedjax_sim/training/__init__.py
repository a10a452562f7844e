"""A round, a run, and what is measured of them."""
