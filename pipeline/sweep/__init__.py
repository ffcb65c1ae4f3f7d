"""Sweeps: models x benchmarks x prompts x settings, as run folders, and the table of their scores."""
