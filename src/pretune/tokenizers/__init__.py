"""Tokenizers: train, load, extend and measure them; chat templates."""
