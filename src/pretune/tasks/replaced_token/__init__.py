"""Replaced-token detection: ELECTRA's pre-training."""
