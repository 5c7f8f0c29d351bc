"""The embedded model's files and sample recordings."""
