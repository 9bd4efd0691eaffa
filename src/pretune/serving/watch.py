"""Whether a model's folder holds something new."""

from __future__ import annotations

import os
from pathlib import Path

from pretune.checkpoints.source import find_source
from pretune.errors import PretuneError

#: Seconds between two looks at a folder.
EVERY = 2.0
#: Endings of files that a model is read from.
_ENDINGS = (".json", ".safetensors", ".bin", ".txt", ".jinja")

#: What tells one state of a folder from another: where it is, and its files as the disk knows them.
Fingerprint = tuple[str, tuple[tuple[str, int, int, int], ...]]


def fingerprint(source: str) -> Fingerprint | None:
    """Return the fingerprint of the model that a source names now.

    None where it is not on this machine, or there is no model at the moment.
    """
    if not os.path.isdir(os.path.expanduser(source)):
        return None
    try:
        folder = Path(os.path.realpath(find_source(source)))
        files = sorted(
            (entry.name, status.st_mtime_ns, status.st_size, status.st_ino)
            for entry in os.scandir(folder)
            if entry.name.endswith(_ENDINGS) and (status := entry.stat())
        )
    except (OSError, PretuneError):
        return None
    return str(folder), tuple(files)


class Watched:
    """The folder of a model whose new versions are wanted."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._known = self._before = fingerprint(source)

    def changed(self) -> bool:
        """Whether there is something new, which is no longer being written.

        It is told once: also where it turns out to be of no use.
        """
        now = fingerprint(self._source)
        # Two looks that saw the same: nobody is copying files into it.
        settled, self._before = now == self._before, now
        if now is None or now == self._known or not settled:
            return False
        self._known = now
        return True
