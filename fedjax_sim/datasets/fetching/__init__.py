"""Data sets that are fetched by package clients."""
