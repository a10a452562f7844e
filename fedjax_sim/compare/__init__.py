"""The aggregation modes side by side."""
