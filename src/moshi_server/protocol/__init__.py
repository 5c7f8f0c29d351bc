"""Bytes to events and events to bytes, with no I/O of its own."""
