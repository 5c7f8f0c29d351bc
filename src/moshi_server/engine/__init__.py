"""Batching: slots, sessions and one model thread."""
