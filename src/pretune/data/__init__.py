"""Records from files, packed batches, and the order in which a model sees them."""
