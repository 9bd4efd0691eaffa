"""From a model to text, token by token: drawing, searching, and what has been written so far."""
