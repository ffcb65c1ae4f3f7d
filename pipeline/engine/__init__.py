"""Samples in, answers out, on one device. Imports torch and transformers; never Ray, tables or files."""
