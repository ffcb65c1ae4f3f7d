"""From table to table: preprocess, generate, strips."""
