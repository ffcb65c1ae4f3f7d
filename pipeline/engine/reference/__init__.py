"""transformers' own generation, over the same samples as our engine: what it is checked against, and its stand-in."""
