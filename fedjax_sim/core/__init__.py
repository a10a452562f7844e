"""The types, and what all rooms share below them."""
