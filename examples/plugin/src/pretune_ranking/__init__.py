"""Pairwise ranking for pretune: a task, a model family, a metric and a recipe."""

from pathlib import Path

RECIPE = Path(__file__).with_name("rank.yaml")
