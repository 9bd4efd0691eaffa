"""The command line: parse, call, print. `pretune --help` starts without importing torch."""
