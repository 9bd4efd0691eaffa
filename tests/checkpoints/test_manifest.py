"""Any change to a listed file is found and named; a hostile manifest does no harm."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretune.checkpoints.manifest import MANIFEST, find_damage, write_manifest

FILES = st.dictionaries(
    st.sampled_from(["config.json", "model.safetensors", "vocab.txt", "好 .txt", "a/b.bin"]),
    st.binary(max_size=200),
    min_size=1,
)


def fill(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    write_manifest(folder)


@given(FILES, st.data())
def test_any_damage_is_found_and_named(files: dict[str, bytes], data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        fill(folder, files)
        assert find_damage(folder) is None
        name = data.draw(st.sampled_from(sorted(files)))
        content = files[name]
        how = ["removed", "longer", *(["byte", "cut", "shifted"] if content else [])]
        at = data.draw(st.integers(0, max(len(content) - 1, 0)))
        match data.draw(st.sampled_from(how)):
            case "byte":
                other = bytes([content[at] ^ data.draw(st.integers(1, 255))])
                (folder / name).write_bytes(content[:at] + other + content[at + 1 :])
            case "cut":
                (folder / name).write_bytes(content[:at])
            case "longer":
                (folder / name).write_bytes(content + b"\0")
            case "shifted":
                moved = content[1:] + bytes([content[0] ^ 1])
                (folder / name).write_bytes(moved)
            case _:
                (folder / name).unlink()
        found = find_damage(folder)
        assert found is not None
        assert found.startswith(f"{folder / name}: ")


@given(st.data())
def test_a_changed_byte_of_the_manifest_never_hides_damage(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        fill(folder, {"a.bin": b"what was written"})
        (folder / "a.bin").write_bytes(b"what was Written")
        manifest = folder / MANIFEST
        raw = manifest.read_bytes()
        at = data.draw(st.integers(0, len(raw) - 1))
        other = bytes([raw[at] ^ data.draw(st.integers(1, 255))])
        manifest.write_bytes(raw[:at] + other + raw[at + 1 :])
        assert find_damage(folder) is not None


@given(st.integers(0, 10**6))
def test_a_cut_manifest_is_damage(size: int) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        fill(folder, {"a.bin": b"what was written"})
        raw = (folder / MANIFEST).read_bytes()
        (folder / MANIFEST).write_bytes(raw[: size % (len(raw) - 2)])  # "}\n" ends it
        assert find_damage(folder) == f"{folder / MANIFEST}: damaged"


ENTRY = {"size": 2, "sha256": "2cf24dba"}
HOSTILE: dict[str, str] = {
    "nothing": "",
    "no object": "[]",
    "no files": "{}",
    "a list of files": json.dumps({"files": ["a"]}),
    "no entry": json.dumps({"files": {"a": None}}),
    "an entry that is a text": json.dumps({"files": {"a": "size sha256"}}),
    "no size": json.dumps({"files": {"a": {"sha256": ""}}}),
    "a size that is a text": json.dumps({"files": {"a": {**ENTRY, "size": "2"}}}),
    "a size that is true": json.dumps({"files": {"a": {**ENTRY, "size": True}}}),
    "an endless size": '{"files": {"a": {"size": 1e999, "sha256": ""}}}',
    "a size that is no number": '{"files": {"a": {"size": NaN, "sha256": ""}}}',
    "a size of too many digits": '{"files": {"a": {"size": %s, "sha256": ""}}}' % ("9" * 5000),
    "a digest that is a list": json.dumps({"files": {"a": {**ENTRY, "sha256": ["a"]}}}),
    "a deep nesting": "[" * 10**6,
    "a deep nesting of objects": '{"files":' * 10**5,
    "not UTF-8": "\udcff\udcfe",
    "50 MB": json.dumps({"files": {"a": {**ENTRY, "sha256": "x" * (50 << 20)}}}),
    **{
        f"the name {name!r}": json.dumps({"files": {name: ENTRY}})
        for name in [
            "../x",
            "a/../../x",
            "a/..",
            "..",
            ".",
            "./x",
            "",
            "/etc/passwd",
            "//etc/passwd",
            "a//b",
            "x\0y",
            "x\ny",
            "\ud800",
            "x\x1b[2J",
        ]
    },
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_manifest_is_damage(tmp_path: Path, content: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "x").write_text("hi")
    (folder / "x").write_text("hi")
    (folder / MANIFEST).write_bytes(content.encode("utf-8", "surrogateescape"))
    assert find_damage(folder) == f"{folder / MANIFEST}: damaged"


def test_a_size_beyond_all_disks_is_a_difference(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("hi")
    (tmp_path / MANIFEST).write_text(json.dumps({"files": {"a": {**ENTRY, "size": 10**30}}}))
    assert str(find_damage(tmp_path)).startswith(f"{tmp_path / 'a'}: damaged (2 bytes, written")


def test_a_name_longer_than_any(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text(json.dumps({"files": {"a" * 10**5: ENTRY}}))
    assert "cannot be read" in str(find_damage(tmp_path))


def test_nothing_outside_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    outside = tmp_path / "secret"
    outside.write_text("hi")
    looked: list[str] = []
    original = Path.stat

    def watching(self: Path, **options: Any) -> os.stat_result:
        looked.append(os.path.normpath(self))
        return original(self, **options)

    monkeypatch.setattr(Path, "stat", watching)
    for name in ("../secret", str(outside), "../model/../secret"):
        (folder / MANIFEST).write_text(json.dumps({"files": {name: ENTRY}}))
        assert find_damage(folder) is not None
    assert set(looked) == {str(folder / MANIFEST)}


@pytest.mark.parametrize("name", ["a", MANIFEST])
def test_what_is_not_a_file_is_not_read(tmp_path: Path, name: str) -> None:
    """A pipe would be waited for for ever, a device read for ever."""
    fill(tmp_path, {"a": b""})
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    assert str(find_damage(tmp_path)).startswith(f"{tmp_path / name}: damaged")
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to("/dev/zero")
    assert str(find_damage(tmp_path)).startswith(f"{tmp_path / name}: damaged")
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    assert str(find_damage(tmp_path)).startswith(f"{tmp_path / name}: damaged")


def test_only_wanted_files_are_looked_at(tmp_path: Path) -> None:
    fill(tmp_path, {"a": b"1", "b": b"2"})
    (tmp_path / "a").write_bytes(b"3")
    assert find_damage(tmp_path, lambda name: name == "b") is None
    assert find_damage(tmp_path, lambda name: name == "a") is not None
