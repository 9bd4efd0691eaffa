"""A trained model made smaller, and written for other engines."""
