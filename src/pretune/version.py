"""The version of pretune: in a file of its own, so that who names it imports nothing else."""

__version__ = "0.1.0"
