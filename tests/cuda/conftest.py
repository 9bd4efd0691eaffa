from __future__ import annotations

from tests.training.conftest import toy_data, toy_recipe

__all__ = ["toy_data", "toy_recipe"]
