"""Checkpoints in and out, in the Hugging Face layout."""

from pretune.hub.adapter import fill_adapter, save_adapter
from pretune.hub.config import MOST_LABELS, family_of, read_config, read_object
from pretune.hub.files import (
    atomic_folder,
    atomic_text,
    is_aside,
    make_folder,
    point,
    remove_folder,
    sweep,
)
from pretune.hub.keys import FAMILIES
from pretune.hub.layout import Family
from pretune.hub.load import LoadReport, load_into
from pretune.hub.manifest import MANIFEST, find_damage, write_manifest
from pretune.hub.open import open_weights, tensorflow_names
from pretune.hub.publish import Published, StagedFile, check_name, hub_token, staged_files, upload
from pretune.hub.save import save_model
from pretune.hub.source import EMBEDDED, HUB_ID, find_source, find_tokenizer
from pretune.hub.weights import DTYPES, Safetensors, WeightSource, named_dtype

__all__ = [
    "DTYPES",
    "EMBEDDED",
    "FAMILIES",
    "HUB_ID",
    "MANIFEST",
    "MOST_LABELS",
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
    "fill_adapter",
    "find_damage",
    "find_source",
    "find_tokenizer",
    "hub_token",
    "is_aside",
    "load_into",
    "make_folder",
    "named_dtype",
    "open_weights",
    "point",
    "read_config",
    "read_object",
    "remove_folder",
    "save_adapter",
    "save_model",
    "staged_files",
    "sweep",
    "tensorflow_names",
    "upload",
    "write_manifest",
]
