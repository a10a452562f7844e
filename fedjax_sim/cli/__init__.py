"""The command line: parses, calls, prints. One file a command."""

from fedjax_sim.cli.parser import main as main
