"""In-context learning, measured."""
