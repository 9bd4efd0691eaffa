"""Language models from before the Transformer."""
