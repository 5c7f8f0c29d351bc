"""Text tokens, words and times; no torch, no I/O."""
