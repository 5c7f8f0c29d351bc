"""Speech synthesizers behind one call each: text in, 24 kHz audio and word times out."""
