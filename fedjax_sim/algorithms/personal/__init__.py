"""Algorithms that leave a client with a model of its own, one paper a file."""
