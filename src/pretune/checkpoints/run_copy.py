"""Which checkpoints the copy of a run in object storage has; see `training.mirror`."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from pretune.errors import DataError
from pretune.storage.object_store import read_text, url_of

#: The file that names them.
POINTER = "mirror.json"
#: The name of a checkpoint: its update, and a number where a run reached that twice.
CHECKPOINT_NAME = re.compile(r"step-(\d+)(?:\.(\d+))?")


def step_of(name: str) -> int:
    """The number of updates in the name of a checkpoint; raises ValueError for another name."""
    match = CHECKPOINT_NAME.fullmatch(name)
    if match is None:
        raise ValueError(name)
    return int(match[1])


class CopiedCheckpoints(NamedTuple):
    """The whole checkpoints of a copy, by their names."""

    whole: tuple[str, ...]
    last: str
    best: str | None

    @property
    def steps(self) -> int:
        """The updates of the newest."""
        return step_of(self.last)

    def to_json(self) -> str:
        """What `mirror.json` holds."""
        values = {"last": self.last, "best": self.best, "checkpoints": list(self.whole)}
        return json.dumps(values, indent=1) + "\n"


def read_pointer(place: str | Path) -> CopiedCheckpoints | None:
    """Read which checkpoints the copy of a run has; None where there is no copy.

    Args:
        place: the prefix in object storage.

    Raises:
        DataError: the storage cannot be reached, or the file names no checkpoints.
    """
    url = f"{url_of(place)}/{POINTER}"
    text = read_text(url)
    if text is None:
        return None
    with suppress(ValueError, TypeError, KeyError, AttributeError):
        values = json.loads(text)
        found = CopiedCheckpoints(tuple(values["checkpoints"]), values["last"], values["best"])
        named = {found.last, found.best or found.last}
        if named <= {*found.whole} and all(map(CHECKPOINT_NAME.fullmatch, found.whole)):
            return found
    raise DataError(f"{url}: does not name the checkpoints of a run", "Is it another file?")
