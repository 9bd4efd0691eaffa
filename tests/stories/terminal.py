"""What a person types in a terminal, and what they see there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

#: Commands, files and names of keys stay as they are in every language.
_TYPED = re.compile(r"pretune .*|[\w./-]*[/=]\S*|\b\w+(?:[._]\w+)+")
#: Three words in a row are a sentence that nobody translated.
_SENTENCE = re.compile(r"[A-Za-z]{2,} [a-z]{2,} [a-z]{2,}")


@dataclass(frozen=True)
class Seen:
    """What a command left in the terminal: its answer, and what it said on the way."""

    out: str
    err: str

    def english(self) -> list[str]:
        """The lines in which English is left, where another language is spoken."""
        lines = f"{self.out}\n{self.err}".splitlines()
        return [line for line in lines if _SENTENCE.search(_TYPED.sub("", line))]


def type_in(
    folder: Path, *words: object, language: str = "en", lines: str = "", code: int = 0
) -> Seen:
    """Type `pretune WORDS` in a folder.

    Args:
        folder: where the person is.
        words: of the command.
        language: that they chose.
        lines: that come through a pipe.
        code: how the command should end: 0 if all is well, 2 after a mistake of theirs.
    """
    typed = [sys.executable, "-m", "pretune", *map(str, words)]
    done = subprocess.run(
        typed,
        input=lines,
        capture_output=True,
        encoding="utf-8",
        cwd=folder,
        env={**os.environ, "PRETUNE_LANG": language, "COLUMNS": "200"},
    )
    seen = Seen(done.stdout, done.stderr)
    assert done.returncode == code, f"{' '.join(map(str, words))}\n{seen.out}\n{seen.err}"
    assert "Traceback" not in seen.err
    return seen
