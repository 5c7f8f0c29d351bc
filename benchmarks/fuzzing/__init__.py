"""The parts of `fuzz.py`: what is fed, how it is varied, and what is watched meanwhile."""
