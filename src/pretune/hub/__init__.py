"""Checkpoints in and out, in the Hugging Face layout."""

from pretune.hub.files import atomic_folder, atomic_text, point
from pretune.hub.keys import FAMILIES, Family
from pretune.hub.load import LoadReport, load_into, read_config
from pretune.hub.save import save_model
from pretune.hub.source import find_source

__all__ = [
    "FAMILIES",
    "Family",
    "LoadReport",
    "atomic_folder",
    "atomic_text",
    "find_source",
    "load_into",
    "point",
    "read_config",
    "save_model",
]
