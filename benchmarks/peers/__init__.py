"""The peers: each file trains the jobs with one of them, in its own environment."""
