from __future__ import annotations

import pkgutil
import subprocess
import sys

import pretune.render


def test_nothing_draws_before_a_chart_is_asked_for() -> None:
    """Commands that show a table do not wait for matplotlib."""
    names = [
        f"pretune.render.{module.name}" for module in pkgutil.iter_modules(pretune.render.__path__)
    ]
    code = f"import sys, {', '.join(names)}; sys.exit('matplotlib' in sys.modules)"
    assert len(names) > 10
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
