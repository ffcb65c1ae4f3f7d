"""Reports: what is made of a complete run for people."""
