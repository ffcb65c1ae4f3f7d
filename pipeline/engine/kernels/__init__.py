"""Products and attention, and how a batch is laid out for them."""
