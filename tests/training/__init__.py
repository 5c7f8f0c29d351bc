"""Tests of the recipe that makes the embedded model."""
