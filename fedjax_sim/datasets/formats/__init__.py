"""Federations in files of the user's."""
