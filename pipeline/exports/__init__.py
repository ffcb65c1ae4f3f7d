"""Exports: the answers of a complete run in the forms that other tools read."""
