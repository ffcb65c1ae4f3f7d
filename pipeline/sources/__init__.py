"""What --input names, as work units and their rows."""
