"""Inputs of every format, as work units and their rows."""
