"""Tests of the embedded model itself."""
