"""Checkpoints in and out, in the Hugging Face layout."""
