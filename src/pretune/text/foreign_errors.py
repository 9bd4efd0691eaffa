"""Errors of somebody's own code, told in a sentence: rewards, callbacks, metrics, losses."""

from __future__ import annotations

import os
import traceback

from pretune.text.terminal import in_line

#: Characters of a message that are kept.
_LONGEST = 100
#: Our own code, whose lines say nothing to the person who wrote the other.
_PACKAGE = os.path.dirname(os.path.dirname(__file__)) + os.sep


def described_error(error: BaseException) -> str:
    """Return an error of somebody's code on one line, with the place where it was raised."""
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    text = text if len(text) <= _LONGEST else text[:_LONGEST] + "..."
    frames = traceback.extract_tb(error.__traceback__)
    own = [
        frame
        for frame in frames
        if not frame.filename.startswith(_PACKAGE) and "<" not in frame.filename
    ]
    place = f" ({os.path.basename(own[-1].filename)}, line {own[-1].lineno})" if own else ""
    return in_line(text) + place
