"""`python -m pretune`."""

from pretune.cli import main

main()
