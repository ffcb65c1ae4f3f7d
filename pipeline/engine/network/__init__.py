"""The network's layers and weights."""
