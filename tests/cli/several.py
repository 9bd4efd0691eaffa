"""Several command lines in one process: what each prints, and how it ends.

An interpreter that has imported torch costs more than a mistake takes to be told.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DRIVER = """
import contextlib, io, json, sys
from pretune.cli.app import main
for arguments in json.loads(sys.argv[1]):
    sys.argv, code, texts = ["pretune", *arguments], 0, (io.StringIO(), io.StringIO())
    with contextlib.redirect_stdout(texts[0]), contextlib.redirect_stderr(texts[1]):
        try:
            main()
        except SystemExit as end:
            code = end.code
    print(json.dumps([code, *(text.getvalue() for text in texts)]), flush=True)
"""


@dataclass(frozen=True)
class Ended:
    """How a command line ended."""

    returncode: int
    stdout: str
    stderr: str


def several(*lines: list[Any], cwd: Path, **environment: str) -> list[Ended]:
    """Run command lines one after the other; none may fail in another way than by an exit code."""
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, json.dumps([[*map(str, line)] for line in lines])],
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "COLUMNS": "200", **environment},
    )
    assert done.returncode == 0, done.stderr
    ended = [Ended(*json.loads(line)) for line in done.stdout.splitlines()]
    assert len(ended) == len(lines), done.stderr
    assert all("Traceback" not in end.stderr for end in ended)
    return ended
