"""Learning from preferences: reward models, and models that learn which reply is better."""
