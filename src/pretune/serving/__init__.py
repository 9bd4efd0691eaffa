"""A trained model behind HTTP: the service, its protocols, its page."""
