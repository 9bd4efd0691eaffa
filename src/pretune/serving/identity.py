"""Which model is served: the update of its run, and a digest of its weights."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from pretune.bundle.bundle import ADAPTER
from pretune.bundle.loadable import RUN_STATE

#: Hexadecimal digits of a digest that are told: enough to tell any two models apart.
DIGITS = 12
#: The files that weights are read from, what is looked for first being first.
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin", "*.gguf")
#: How a run calls the folder of a checkpoint.
_CHECKPOINT = re.compile(r"step-(\d+)(?:\.\d+)?")


def update_of(folder: Path) -> int | None:
    """Return the update of its run that a checkpoint was written after; None: of no run."""
    match = _CHECKPOINT.fullmatch(Path(os.path.realpath(folder)).name)
    return None if match is None else int(match[1])


def digest_of(place: Path) -> str | None:
    """Return the beginning of the SHA-256 of a model's weights.

    Of one file it is what `sha256sum`, the manifest of a run and the Hub tell; of several files,
    the SHA-256 of theirs, in the order of their names. None where there is no file that is known.
    """
    files = [place] if place.is_file() else _files(place)
    digests = []
    for file in files:
        with file.open("rb") as handle:
            digests.append(hashlib.file_digest(handle, "sha256").hexdigest())
    if len(digests) > 1:
        digests = [hashlib.sha256("".join(digests).encode()).hexdigest()]
    return digests[0][:DIGITS] if digests else None


def _files(folder: Path) -> list[Path]:
    for pattern in _WEIGHTS:
        there = [*folder.glob(pattern), *(folder / ADAPTER).glob(pattern)]
        own = [path for path in there if not path.name.startswith(RUN_STATE)]
        if own:
            return sorted(own)
    return []
