"""Rules that see all updates at once, so that a few of them cannot move the model far."""
