"""Files in object storage: `s3://`, `gs://`, `hf://` and `memory://`, by fsspec.

What is read once, from its beginning to its end, is read as a stream. What is read here and there
(tables, token shards, weights) is copied to the cache first, under a name that has the object's
version in it: a copy is fetched again only if the object has changed. A copy that was interrupted
goes on where it stopped.
"""

from __future__ import annotations

import atexit
import hashlib
import importlib
import io
import json
import os
import re
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

from typing_extensions import override

from pretune.errors import DataError, Note, PretuneError
from pretune.host import sync_path, take_lock
from pretune.storage.cache_folder import cache_folder

#: The package that reads a kind of storage.
PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "hf": "huggingface_hub", "memory": "fsspec"}
#: What to check where it cannot be read.
_WAYS_OUT = {
    "s3": "Check the name, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AWS_PROFILE, and "
    "AWS_ENDPOINT_URL where the storage is not Amazon's.",
    "gs": "Check the name and GOOGLE_APPLICATION_CREDENTIALS.",
    "hf": "Check the name (hf://datasets/OWNER/NAME/FILE, hf://OWNER/NAME/FILE) and HF_TOKEN.",
    "memory": "Check the name; this storage ends with its process.",
}
#: A place in object storage. `Path` makes one slash of two.
_URL = re.compile(rf"({'|'.join(PACKAGES)}):/+(.*)", re.DOTALL)
#: Bytes that are read or written at a time.
CHUNK = 8 * 2**20
#: Bytes of an object that is read as one text, at most.
_SMALL = 16 * 2**20
#: Copies that are told of: they take a while.
_LARGE = 256 * 2**20
#: In a folder that is being sent: what has arrived, until all has.
SENT = ".sent.json"
#: Characters that a name on the disk may have.
_PLAIN = re.compile(r"[^\w.=-]+")


@dataclass(frozen=True)
class StoredObject:
    """An object in storage."""

    url: str
    size: int  # bytes
    version: str  # another one when it was written again

    @property
    def number(self) -> int:
        """The version as a number, in the place of a time of change."""
        return int.from_bytes(hashlib.sha256(self.version.encode()).digest()[:6])


def is_url(place: object) -> bool:
    """Whether a place is in object storage; a `Path` of one is, too."""
    return isinstance(place, str | Path) and _URL.match(str(place)) is not None


def url_of(place: str | Path) -> str:
    """A place in object storage as it is written: with two slashes, and none at the end."""
    match = _URL.match(str(place))
    if match is None:
        raise ValueError(place)
    return f"{match[1]}://{match[2].rstrip('/')}"


def look_up(place: str | Path) -> StoredObject | None:
    """Find an object; None where there is none of that name.

    Raises:
        DataError: the storage cannot be asked.
    """
    url = url_of(place)
    with _told(url):
        store, path = _store(url)
        try:
            return _object(url, store.info(path))
        except FileNotFoundError:
            return None


def listed(place: str | Path) -> list[StoredObject]:
    """All objects below a prefix, or those that a pattern names, in the order of their names.

    Args:
        place: e.g. `s3://bucket/texts` or `s3://bucket/texts/**/*.jsonl`.

    Raises:
        DataError: the storage cannot be asked.
    """
    url = url_of(place)
    with _told(url):
        store, path = _store(url)
        try:
            if re.search(r"[*?\[]", path):
                entries = store.glob(path, detail=True)
            else:
                entries = store.find(path, detail=True)
        except FileNotFoundError:
            return []
    scheme = _scheme(url)
    files = [info for _, info in sorted(entries.items()) if info["type"] == "file"]
    return [_object(f"{scheme}://{info['name'].lstrip('/')}", info) for info in files]


@contextmanager
def opened(place: str | Path) -> Iterator[BinaryIO]:
    """Open an object to be read as a stream; it can be sought in, too.

    Raises:
        DataError: it is not there, or cannot be read, also later while it is.
    """
    url = url_of(place)
    with _told(url):
        store, path = _store(url)
        handle = store.open(path, "rb", block_size=CHUNK)
    with handle:
        yield io.BufferedReader(_Told(url, handle), CHUNK)


def local_copy(place: str | Path) -> Path:
    """A file on the disk with the bytes of an object: in the cache, or fetched now.

    Raises:
        DataError: there is no such object, or it cannot be read or written down.
    """
    url = url_of(place)
    stored = look_up(url)
    if stored is None:
        raise DataError(f"{url}: no such object", _way_out(url))
    name = url.rpartition("/")[2]
    target = _kept(url, stored.version) / _plain(name)
    with _locked(target.parent):
        fetch(stored, target)
    return target


def local_folder(place: str | Path, wanted: Callable[[str], bool] = lambda name: True) -> Path:
    """A folder on the disk with the objects below a prefix: in the cache, or fetched now.

    Args:
        place: the prefix.
        wanted: whether an object is needed, by its path below the prefix.

    Raises:
        DataError: nothing is there, it cannot be read or written down, or has a name that leads out
            of the folder.
    """
    url = url_of(place)
    objects = {stored.url[len(url) + 1 :]: stored for stored in listed(url)}
    objects = {name: stored for name, stored in objects.items() if wanted(name) and name != SENT}
    if not objects:
        raise DataError(f"{url}: nothing is stored there", _way_out(url))
    versions = json.dumps([[name, stored.version] for name, stored in sorted(objects.items())])
    folder = _kept(url, versions)
    with _locked(folder):
        for name, stored in sorted(objects.items()):
            check_name(stored, name)
            fetch(stored, folder / "files" / name)
    return folder / "files"


def check_name(stored: StoredObject, name: str) -> None:
    """Check that an object's path below a prefix is one of a file below a folder.

    Raises:
        DataError: it leads out of the folder, or names none.
    """
    if any(part in ("", ".", "..") or "\\" in part for part in name.split("/")):
        raise DataError(f"{stored.url}: not a name of a file", "Rename the object.")


def send_file(file: Path, place: str | Path) -> None:
    """Write a file to object storage; the object is there whole or not at all.

    Raises:
        DataError: the storage cannot be written to.
        FileNotFoundError: there is no such file.
    """
    url = url_of(place)
    with file.open("rb") as source, _told(url):
        store, path = _store(url)
        with store.open(path, "wb") as target:
            shutil.copyfileobj(source, target, CHUNK)


def write_text(place: str | Path, text: str) -> None:
    """Write an object with a text in UTF-8.

    Raises:
        DataError: the storage cannot be written to.
    """
    url = url_of(place)
    with _told(url):
        store, path = _store(url)
        store.pipe_file(path, text.encode())


def read_text(place: str | Path) -> str | None:
    """Read a small object of text in UTF-8; None where there is none.

    Raises:
        DataError: the storage cannot be read, or the object is no such text.
    """
    stored = look_up(place)
    if stored is None:
        return None
    if stored.size > _SMALL:
        raise DataError(f"{stored.url}: too large ({stored.size:,} bytes)", "Is it another file?")
    with _told(stored.url):
        store, path = _store(stored.url)
        try:
            # In one piece: it may be replaced at any time.
            content: bytes = store.cat_file(path)
        except FileNotFoundError:
            return None
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise DataError(f"{stored.url}: is no text in UTF-8", "Is it another file?") from None


def remove(place: str | Path) -> None:
    """Remove an object, or all below a prefix; nothing need be there.

    Raises:
        DataError: the storage cannot be written to.
    """
    url = url_of(place)
    with _told(url):
        store, path = _store(url)
        with suppress(FileNotFoundError):
            store.rm(path, recursive=True)


def send_folder(folder: Path, place: str | Path, *, last: Collection[str] = ()) -> int:
    """Write the files of a folder to object storage; what has arrived before is not sent again.

    An interrupted call is repeated. Each object is there whole or not at all.

    Args:
        folder: with all its folders.
        place: the prefix.
        last: files that are sent after all others, as they tell what the others have to be.

    Returns:
        the bytes that were sent.

    Raises:
        DataError: the storage cannot be written to.
    """
    url = url_of(place)
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    sent = 0
    with _told(url):
        store, prefix = _store(url)
        arrived = _arrived(store, prefix)
        for name in sorted(names, key=lambda name: (name in last, name)):
            file, target = folder / name, f"{prefix}/{name}"
            size, digest = file.stat().st_size, _digest(file)
            if arrived.get(name) == digest and _size(store, target) == size:
                continue
            store.put_file(str(file), target)
            sent += size
            arrived[name] = digest
            store.pipe_file(f"{prefix}/{SENT}", json.dumps(arrived).encode())
        # Whoever sends another folder there must not take these for its own.
        with suppress(FileNotFoundError):
            store.rm_file(f"{prefix}/{SENT}")
    return sent


# How.


def _scheme(url: str) -> str:
    return url.partition("://")[0]


def _way_out(url: str) -> str:
    return _WAYS_OUT[_scheme(url)]


def _store(url: str) -> tuple[Any, str]:
    """The file system of a URL, without what it remembers, and the path there."""
    import fsspec

    scheme = _scheme(url)
    try:
        importlib.import_module(PACKAGES[scheme])
    except ImportError:
        raise DataError(
            f"{url}: the package {PACKAGES[scheme]} is missing",
            f"pip install 'pretune[cloud]', or pip install {PACKAGES[scheme]}",
        ) from None
    store, path = fsspec.core.url_to_fs(url)
    store.invalidate_cache()
    return store, path


class _Told(io.RawIOBase):
    """A stream of an object, whose errors are told of; those of its reader are not its own."""

    def __init__(self, url: str, handle: Any) -> None:
        self._url, self._handle = url, handle

    @override
    def readable(self) -> bool:
        return True

    @override
    def seekable(self) -> bool:
        return True

    @override
    def readinto(self, buffer: Any) -> int:
        with _told(self._url):
            chunk: bytes = self._handle.read(len(buffer))
        buffer[: len(chunk)] = chunk
        return len(chunk)

    @override
    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        with _told(self._url):
            return int(self._handle.seek(offset, whence))

    @override
    def tell(self) -> int:
        return int(self._handle.tell())


@contextmanager
def _told(url: str) -> Iterator[None]:
    """Tell of whatever goes wrong in storage; each library has errors of its own."""
    try:
        yield
    except (PretuneError, GeneratorExit):
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"{url}: cannot be reached ({type(error).__name__}: {reason[:300]})",
            _way_out(url),
        ) from error


def _object(url: str, info: dict[str, Any]) -> StoredObject:
    if info["type"] != "file":
        raise FileNotFoundError(url)
    size = int(info["size"])
    # A hash of the content where the storage has one, else when it was written.
    marks = [info.get(key) for key in ("ETag", "etag", "md5Hash", "blob_id", "last_commit")]
    if not any(marks):
        times = (info.get(key) for key in ("LastModified", "mtime", "updated", "created"))
        marks = [when.timestamp() if isinstance(when, datetime) else when for when in times]
    return StoredObject(url, size, f"{size} {marks}")


def _size(store: Any, path: str) -> int | None:
    try:
        return int(store.info(path)["size"])
    except FileNotFoundError:
        return None


def _arrived(store: Any, prefix: str) -> dict[str, str]:
    """The digests of what an interrupted call has sent."""
    with suppress(FileNotFoundError, ValueError):
        value = json.loads(store.cat_file(f"{prefix}/{SENT}"))
        if isinstance(value, dict):
            return {str(name): str(digest) for name, digest in value.items()}
    return {}


def _digest(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


@cache
def _temporary() -> Path:
    """The folder of this process for copies, where the cache is turned off."""
    folder = Path(tempfile.mkdtemp(prefix="pretune-objects-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _kept(url: str, version: str) -> Path:
    """The folder in the cache for one version of what is at a URL."""
    base = cache_folder() or _temporary()
    parts = [_plain(part) for part in url.replace("://", "/").split("/")]
    digest = hashlib.sha256(f"{url}\n{version}".encode()).hexdigest()[:16]
    return Path(base, "objects", *parts, digest)


def _plain(name: str) -> str:
    return _PLAIN.sub("_", name).lstrip(".")[-100:] or "_"


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Let one process at a time write a copy; the others wait, and find it there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = (folder / ".lock").open("w")
    except OSError as error:
        raise DataError(
            f"{folder}: cannot be written ({error.strerror})",
            "PRETUNE_CACHE=FOLDER names another place for copies.",
        ) from None
    with handle:
        while not take_lock(handle):
            time.sleep(0.1)
        yield


def fetch(stored: StoredObject, target: Path) -> None:
    """Copy an object to a file, unless it is there; what an interrupted copy has left is continued.

    Raises:
        DataError: the storage cannot be read, or the file cannot be written.
    """
    if target.is_file() and target.stat().st_size == stored.size:
        return
    if stored.size >= _LARGE:
        megabytes = stored.size / 2**20
        note = f"{stored.url}: {megabytes:,.0f} MiB are copied to {target.parent}"
        warnings.warn(note, Note, stacklevel=2)
    part = target.with_name(f"{target.name}.part")
    # Errors of the storage are DataErrors already: an OSError is one of the disk.
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with part.open("ab") as copy, opened(stored.url) as source:
            if copy.tell() > stored.size:
                copy.truncate(0)
            source.seek(copy.tell())
            while chunk := source.read(CHUNK):
                copy.write(chunk)
        if part.stat().st_size != stored.size:
            part.unlink()
            raise DataError(
                f"{stored.url}: has changed while it was copied", "Once it is whole, try again."
            )
        sync_path(part)
        os.replace(part, target)
    except OSError as error:
        raise DataError(
            f"{target}: cannot be written ({error.strerror or error})",
            "PRETUNE_CACHE=FOLDER names another place for copies.",
        ) from error
