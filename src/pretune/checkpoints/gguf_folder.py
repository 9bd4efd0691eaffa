"""A GGUF file as a folder in the Hugging Face layout, which everything else reads.

`config.json`, the tokenizer's files and `generation_config.json` are made of the file's entries.
The folder lies in the cache, with the weights as floats in `model.safetensors`, so that the next
start maps them. Where there is no cache, or the weights are too large for it, the folder is a
temporary one, and the weights are converted from the file itself whenever they are read.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from pretune.checkpoints.atomic_io import atomic_folder, atomic_text, make_folder
from pretune.checkpoints.config import family_of, sizes_of
from pretune.checkpoints.gguf import GgufFile
from pretune.checkpoints.gguf_models import GgufWeights, gguf_config
from pretune.checkpoints.unsupported import GGUF_FILE
from pretune.checkpoints.weights import SAFETENSORS_DTYPES, WeightSource
from pretune.errors import CheckpointError, RunError, note
from pretune.models.config import brief
from pretune.storage.cache_folder import cache_folder
from pretune.tokenizers.classes import INPUTS
from pretune.tokenizers.gguf_vocabulary import gguf_tokenizer

#: Larger weights, in bytes as floats, are not kept in the cache.
MOST_KEPT = 2 << 30
#: To be raised when a file becomes another folder than before.
_VERSION = 1
#: Tokens that end a text or a turn; `generation_config.json` lists them.
_ENDS = ("eos_token_id", "eot_token_id", "eom_token_id")

_lock = threading.Lock()
_temporary_folders: dict[tuple[Any, ...], Path] = {}


def folder_of_gguf(path: Path) -> Path:
    """Return the folder of a GGUF file in the Hugging Face layout; make it where it is missing.

    A note tells where the weights are kept, once they are.

    Raises:
        CheckpointError: no GGUF file that pretune can use; names what is wrong with it.
    """
    path = path.resolve()
    try:
        state = path.stat()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
    same = (path, state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_dev, state.st_ino)
    cache = cache_folder()
    # One thread at a time: two of a server's would write the same folder.
    with _lock:
        kept = None if cache is None else _kept_folder(path, cache / "gguf", same)
        return kept or _temporary_folder(path, same)


def _kept_folder(path: Path, cache: Path, same: tuple[Any, ...]) -> Path | None:
    """Return the folder in the cache; None where it cannot be there."""
    name = re.sub(r"[^\w.-]", "_", path.stem)[:60]
    place = cache / f"{name}-{_digest(path, cache, same)}"
    if place.is_dir():
        return place
    file = GgufFile(path)
    weights = _checked_weights(file)
    layout, size = _layout(weights)
    if size > MOST_KEPT:
        return None
    try:
        make_folder(cache)
        with atomic_folder(place) as aside:
            _write_beside(file, aside)
            _write_weights(weights, layout, aside / "model.safetensors")
    except (OSError, RunError) as error:  # full, read-only; or another process was first
        if place.is_dir():
            return place
        reason = getattr(error, "strerror", None) or error
        note(f"{place}: cannot be written ({reason}); the weights are converted at every start")
        return None
    note(
        f"{path}: its weights are kept as floats in {place} ({size / 1e6:,.0f} MB), which is read "
        "from now on; it may be removed (PRETUNE_CACHE=off keeps nothing)"
    )
    return place


def _temporary_folder(path: Path, same: tuple[Any, ...]) -> Path:
    """Return a folder that this process removes when it ends."""
    if (known := _temporary_folders.get(same)) is not None and known.is_dir():
        return known
    file = GgufFile(path)
    _checked_weights(file)
    try:
        outer = Path(tempfile.mkdtemp(prefix="pretune-gguf-"))
        atexit.register(_remove, outer, os.getpid())
        folder = outer / (re.sub(r"[^\w.-]", "_", path.stem)[:60] or "model")
        folder.mkdir()
        _write_beside(file, folder)
        (folder / GGUF_FILE).symlink_to(path)
    except OSError as error:
        raise CheckpointError(
            f"{path}: there is no place for its tokenizer ({error.filename}: {error.strerror})",
            "Make room in the temporary folder, or name another: TMPDIR=FOLDER.",
        ) from None
    _temporary_folders[same] = folder
    return folder


def _checked_weights(file: GgufFile) -> GgufWeights:
    """Open the weights, and refuse what cannot be used before anything is written.

    Errors about sizes name the GGUF file: the folder that is made of it is nothing that a person
    has seen.
    """
    weights, config = GgufWeights(file), gguf_config(file)
    sizes_of(family_of(config, file.path), config, file.path)
    return weights


def _remove(folder: Path, process: int) -> None:
    """Remove a temporary folder; a forked process leaves it to the one that made it."""
    if os.getpid() == process:
        shutil.rmtree(folder, ignore_errors=True)


def _digest(path: Path, cache: Path, same: tuple[Any, ...]) -> str:
    """The digest of a file's contents: computed once, and then known by the file's dates."""
    stamp = cache / "digests" / hashlib.sha256(repr(same).encode()).hexdigest()[:32]
    with suppress(OSError, UnicodeDecodeError):
        known = stamp.read_text(encoding="ascii")
        if re.fullmatch(rf"[0-9a-f]{{16}}v{_VERSION}", known):
            return known
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
    digest += f"v{_VERSION}"
    with suppress(OSError, RunError):  # it is computed again then
        make_folder(stamp.parent)
        atomic_text(stamp, digest)
    return digest


def _write_beside(file: GgufFile, folder: Path) -> None:
    """Write everything but the weights."""
    tokenizer = gguf_tokenizer(file.entries, file.path)
    tokenizer.settings[INPUTS] = ["input_ids", "attention_mask"]
    tokenizer.save(folder)
    numbers = {name: tokenizer.special_id(f"{name}_token") for name in ("bos", "eos", "pad")}
    named = {f"{name}_token_id": number for name, number in numbers.items() if number is not None}
    _write_json(folder / "config.json", {**gguf_config(file), **named})
    ends = [*dict.fromkeys(_ends(file))]
    listed = {"eos_token_id": ends} if len(ends) > 1 else {}
    if named:
        _write_json(folder / "generation_config.json", {**named, **listed})


def _ends(file: GgufFile) -> Iterator[int]:
    """The tokens that end a text or a turn."""
    count = len(file.entries["tokenizer.ggml.tokens"])
    for name in _ENDS:
        end = file.entries.get(f"tokenizer.ggml.{name}")
        if end is None:
            continue
        if type(end) is not int or not 0 <= end < count:
            raise CheckpointError(
                f"{file.path}: tokenizer.ggml.{name} is {brief(repr(end))}, of {count:,} tokens",
                "Copy the file again.",
            )
        yield end


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    text = json.dumps(values, ensure_ascii=False, indent=2, sort_keys=True)
    path.write_text(text + "\n", encoding="utf-8")


def _layout(weights: WeightSource) -> tuple[dict[str, Any], int]:
    """The header of the safetensors file that will hold weights, and the bytes after it."""
    kinds = {dtype: name for name, dtype in SAFETENSORS_DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    place = 0
    for name in sorted(weights.names):
        dtype, shape = weights.dtype(name), weights.shape(name)
        assert dtype is not None  # noqa: S101 - a GGUF file's tensors are all read as floats
        end = place + torch.Size(shape).numel() * dtype.itemsize
        header[name] = {"dtype": kinds[dtype], "shape": shape, "data_offsets": [place, end]}
        place = end
    return header, place


def _write_weights(weights: WeightSource, layout: Mapping[str, Any], path: Path) -> None:
    """Write weights as safetensors, one tensor at a time: no more than the largest is in memory."""
    header = json.dumps(layout, ensure_ascii=False).encode()
    # The tensors begin at a multiple of 8 bytes, as safetensors itself writes them.
    header += b" " * (-len(header) % 8)
    with path.open("wb") as out:
        out.write(len(header).to_bytes(8, "little"))
        out.write(header)
        for name in layout:
            if name != "__metadata__":
                dtype = weights.dtype(name)
                assert dtype is not None  # noqa: S101 - as above
                values = weights.read(name, dtype).contiguous()
                out.write(values.view(-1).view(torch.uint8).numpy().data)
