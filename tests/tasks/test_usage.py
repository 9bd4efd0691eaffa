from __future__ import annotations

from typing import Any

import pytest

from pretune.tasks.builtin import task_class


@pytest.mark.parametrize(
    ("name", "options", "command"),
    [
        ("classify", {}, "pretune predict runs/x TEXT"),
        ("classify", {"pair": True}, "pretune predict runs/x TEXT TEXT"),
        ("choose", {}, "pretune predict runs/x --file FILE"),
        ("answer", {}, "pretune predict runs/x --question TEXT --context-file FILE"),
        ("causal_lm", {}, "pretune generate runs/x --prompt TEXT"),
        ("mask_lm", {}, "pretune predict runs/x TEXT"),
        ("tag", {}, "pretune predict runs/x TEXT"),
        ("chat", {}, "pretune chat runs/x"),
        ("chat", {"reverse": True}, "pretune chat RUN --mmi runs/x"),
        ("instruct", {}, "pretune chat runs/x"),
    ],
)
def test_how_people_ask(name: str, options: dict[str, Any], command: str) -> None:
    kind = task_class(name)
    assert kind(kind.options_type(name=name, **options)).usage("runs/x") == command
