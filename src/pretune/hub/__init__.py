"""Checkpoints in and out, in the Hugging Face layout."""

from pretune.hub.files import (
    atomic_folder,
    atomic_text,
    is_aside,
    make_folder,
    point,
    remove_folder,
    sweep,
)
from pretune.hub.keys import FAMILIES, Family
from pretune.hub.load import LoadReport, family_of, load_into, read_config
from pretune.hub.manifest import MANIFEST, find_damage, write_manifest
from pretune.hub.publish import Published, StagedFile, check_name, hub_token, staged_files, upload
from pretune.hub.save import save_model
from pretune.hub.source import EMBEDDED, HUB_ID, find_source
from pretune.hub.weights import Safetensors, WeightSource, open_weights

__all__ = [
    "EMBEDDED",
    "FAMILIES",
    "HUB_ID",
    "MANIFEST",
    "Family",
    "LoadReport",
    "Published",
    "Safetensors",
    "StagedFile",
    "WeightSource",
    "atomic_folder",
    "atomic_text",
    "check_name",
    "family_of",
    "find_damage",
    "find_source",
    "hub_token",
    "is_aside",
    "load_into",
    "make_folder",
    "open_weights",
    "point",
    "read_config",
    "remove_folder",
    "save_model",
    "staged_files",
    "sweep",
    "upload",
    "write_manifest",
]
