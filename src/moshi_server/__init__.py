"""A streaming speech server for Kyutai's models; importing it loads nothing heavy."""

__version__ = "0.1.0"
