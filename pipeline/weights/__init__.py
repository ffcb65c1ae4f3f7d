"""Weights: the files of a checkpoint and of an adapter, from their headers, and what the network needs of them."""
