"""Results folders as one HTML page."""
