"""The run folder: what is on disk of a run, its description, units, answers and lock."""
