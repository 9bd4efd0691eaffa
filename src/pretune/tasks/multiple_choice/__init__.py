"""The best of several continuations of a context."""
