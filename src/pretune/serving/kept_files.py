"""The files of the model that answers, held open, so that they can be read once more.

A folder may have changed since its model was read: by training, by somebody who copies into it, by
a version that was refused. A worker that takes the place of one that died has to answer as the
others do, with what was read.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from pretune.serving.watch import fingerprint, model_folder

#: Where Linux shows the open files of a process: they last, whatever becomes of their names.
_OPEN = Path("/proc/self/fd")
#: A folder with more files is more than a model; none of them is held then.
_MOST = 256


class KeptFiles:
    """The files of a model's folder, as they are now.

    What is replaced lasts as long as it is held, and this is how training saves. What is written
    into, in place, is lost: see `intact`.

    Args:
        source: of the model. Of one that lies nowhere on this machine nothing is held.
    """

    def __init__(self, source: str) -> None:
        self._source = source
        self._files: dict[Path, int] = {}  # by their places in the folder: open files
        self._states: dict[Path, tuple[int, int]] = {}
        self._seen = fingerprint(source)
        folder = model_folder(source)
        if folder is None or not _OPEN.is_dir():
            return
        try:
            self._hold(folder)
        except OSError:
            self.close()

    def _hold(self, folder: Path) -> None:
        for parent, _, names in os.walk(folder):
            for name in names:
                if len(self._files) == _MOST:
                    self.close()
                    return
                place = Path(parent, name)
                number = os.open(place, os.O_RDONLY | os.O_NONBLOCK)
                self._files[place.relative_to(folder)] = number
                self._states[place.relative_to(folder)] = _state(number)

    @property
    def current(self) -> bool:
        """Whether the source still has this very model."""
        return fingerprint(self._source) == self._seen

    @property
    def intact(self) -> bool:
        """Whether the files are held, and have in them what they had."""
        states = {place: _state(number) for place, number in self._files.items()}
        return bool(states) and states == self._states

    def show(self, folder: Path) -> None:
        """Let a folder have the files, for whoever reads them while this process lives."""
        for place, number in self._files.items():
            (folder / place).parent.mkdir(parents=True, exist_ok=True)
            (folder / place).symlink_to(f"/proc/{os.getpid()}/fd/{number}")

    def close(self) -> None:
        """Let the files go."""
        for number in self._files.values():
            with suppress(OSError):
                os.close(number)
        self._files.clear()
        self._states.clear()


def _state(number: int) -> tuple[int, int]:
    status = os.fstat(number)
    return status.st_mtime_ns, status.st_size
