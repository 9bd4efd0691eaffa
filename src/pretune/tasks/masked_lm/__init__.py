"""Masked language modelling and BERT pre-training."""
