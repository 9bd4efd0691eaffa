"""Learning from a teacher: a model that was trained before."""
