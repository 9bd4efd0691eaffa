"""`python -m pretune`."""

from pretune.cli.app import main

main()
