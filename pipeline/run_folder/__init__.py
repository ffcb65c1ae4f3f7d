"""What is on disk of a run: its description, units, answers, lock."""
