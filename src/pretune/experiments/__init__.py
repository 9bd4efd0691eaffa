"""Many runs: plans, costs, sweeps, seeds, the ladder."""
