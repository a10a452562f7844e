"""One run, driven from the host."""
