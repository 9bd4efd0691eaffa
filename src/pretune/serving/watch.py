"""Whether a model's folder holds something new."""

from __future__ import annotations

import os
from pathlib import Path

#: Seconds between two looks at a folder.
EVERY = 2.0
#: Endings of files that a model is read from.
_ENDINGS = (".json", ".safetensors", ".bin", ".txt", ".jinja", ".model", ".spm")

#: What tells one state of a folder from another: where it is, and its files as the disk knows them.
Fingerprint = tuple[str, tuple[tuple[str, int, int, int], ...]]


def model_folder(source: str) -> Path | None:
    """Return the folder of this machine that a model is read from now, as `find_source` finds it.

    What reads models is not imported here: it brings all of torch. None where the model is not on
    this machine, or there is none at the moment.
    """
    path = Path(os.path.expanduser(source))
    for folder in (path, path / "0_Transformer"):
        if (folder / "config.json").is_file() or (folder / "bert_config.json").is_file():
            return Path(os.path.realpath(path))
    for name in ("best", "last"):
        if (path / name / "config.json").is_file():
            return Path(os.path.realpath(path / name))
    return None


def fingerprint(source: str) -> Fingerprint | None:
    """Return the fingerprint of the model that a source names now.

    None where it is not on this machine, or there is no model at the moment.
    """
    try:
        folder = model_folder(source)
        if folder is None:
            return None
        # The folders within are those of sentence-transformers.
        within = [Path(entry.path) for entry in os.scandir(folder) if entry.is_dir()]
        files = sorted(
            (entry.path, status.st_mtime_ns, status.st_size, status.st_ino)
            for place in (folder, *within)
            for entry in os.scandir(place)
            if entry.name.endswith(_ENDINGS) and (status := entry.stat())
        )
    except OSError:
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
