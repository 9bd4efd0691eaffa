"""pretune: a language model from raw text to a served answer."""

__version__ = "0.1.0"
