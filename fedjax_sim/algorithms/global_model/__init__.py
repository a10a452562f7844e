"""One model for all clients; one paper a file."""
