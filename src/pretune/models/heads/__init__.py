"""What stands on top of a backbone: pooled, per token, over the vocabulary."""
