"""Load generation and its reports."""
