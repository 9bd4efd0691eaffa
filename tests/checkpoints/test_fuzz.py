"""Whatever a checkpoint's files say: a model or an error that names what is wrong, in no memory."""

from __future__ import annotations

import json
import random
import resource
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from pretune.bundle.bundle import load, outline, save
from pretune.bundle.convert import convert
from pretune.errors import CheckpointError
from tests.checkpoints.bundles import FIXTURES

#: More than any tiny model needs, and less than any of the sizes that the files lie about.
ROOM = 400 * 2**20

SMALL: dict[str, dict[str, Any]] = {
    "bert": {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2},
    "distilbert": {"dim": 8, "n_layers": 1, "n_heads": 2, "hidden_dim": 16},
    "electra": {
        "embedding_size": 6,
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    },
    "gpt2": {"n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 64},
}

HOSTILE = [
    *(-1, 0, 1, 3, 7, 10**5, 10**12, 2**63, 2**64, 10**40, -(2**63), 0.5, 8.0, 1e308),
    *(float("nan"), float("inf"), float("-inf"), True, False, None, "", "8", "x" * 10**5, [], {}),
    *([[[8]]], {"0": {"a": []}}, ["BertForMaskedLM", 3], "\ud800", [None], {"a": 1}),
]


@contextmanager
def little_memory() -> Iterator[None]:
    """What asks for more memory than `ROOM` fails in here."""
    if sys.platform != "linux":
        yield
        return
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + ROOM, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def survives(folder: Path, *, converting: bool = True) -> bool:
    """Whether it loads; it may be refused, but only in words, and in few of them."""

    def refusal(use: Callable[[Path], Any]) -> str | None:
        try:
            with little_memory():
                use(folder)
        except CheckpointError as error:
            return str(error)
        return None

    found = [refusal(load), refusal(outline)]
    if converting:
        found.append(refusal(lambda source: convert(source, folder.parent / "converted")))
        shutil.rmtree(folder.parent / "converted", ignore_errors=True)
    assert all(text is None or len(text) < 3000 for text in found)
    return found[0] is None


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tiny_vocab_folder) -> dict[str, Path]:
    """A tiny classifier of each family, with a tokenizer."""
    made = {}
    for family, sizes in SMALL.items():
        folder = made[family] = tmp_path_factory.mktemp("small") / family
        count = len((tiny_vocab_folder / "vocab.txt").read_text().splitlines())
        config = transformers.AutoConfig.for_model(family, vocab_size=count, **sizes)
        config.pad_token_id = 0
        with torch.random.fork_rng():
            torch.manual_seed(0)
            kind = transformers.AutoModelForSequenceClassification
            kind.from_config(config).save_pretrained(folder)
        shutil.copy(tiny_vocab_folder / "vocab.txt", folder)
        assert load(folder).report.missing == ()
    return made


@pytest.fixture
def small(folders, tmp_path, request) -> Path:
    """A copy of one of them to damage."""
    family = getattr(request, "param", "bert")
    return Path(shutil.copytree(folders[family], tmp_path / family))


def test_the_limit_is_one() -> None:
    with pytest.raises((MemoryError, RuntimeError)), little_memory():
        # A process that has trained may have free gibibytes in its heap, which count already.
        torch.empty(6 * ROOM, dtype=torch.uint8)


@pytest.mark.parametrize(
    "small",
    ["bert", *(pytest.param(name, marks=pytest.mark.slow) for name in SMALL if name != "bert")],
    indirect=True,
)
def test_config(small: Path) -> None:
    path = small / "config.json"
    config = json.loads(path.read_text())
    keys = [*config, "num_labels", "is_decoder", "position_embedding_type", "dtype", "n_inner"]
    outcomes = []
    for key in dict.fromkeys(keys):
        for value in HOSTILE:
            path.write_text(json.dumps({**config, key: value}))
            about_labels = key in ("architectures", "id2label", "label2id", "num_labels")
            outcomes.append(survives(small, converting=about_labels))
    assert True in outcomes
    assert False in outcomes
    for key in SMALL[config["model_type"]]:
        for value in (-1, 10**12, float("nan"), "8", [8]):
            path.write_text(json.dumps({**config, key: value}))
            assert not survives(small), (key, value)


@pytest.mark.parametrize("small", SMALL, indirect=True)
def test_everything_in_a_config_at_once(small: Path) -> None:
    dice = random.Random(0)
    path = small / "config.json"
    config = json.loads(path.read_text())
    for _ in range(40):
        changes = {key: dice.choice(HOSTILE) for key in dice.sample(sorted(config), 4)}
        path.write_text(json.dumps({**config, **changes}))
        survives(small)


@pytest.mark.parametrize(
    "text", ["1" * 5000, "-" * 9, "[" * 10**5, '{"a":' * 10**5, "\x00", "null"]
)
@pytest.mark.parametrize(
    "name",
    ["config.json", "tokenizer_config.json", "special_tokens_map.json", "pretune.json"],
)
def test_json_that_is_none(small: Path, name: str, text: str) -> None:
    for content in (text, '{"architectures": ' + text + "}"):
        (small / name).write_text(content)
        fine = content != text == "null" and name not in ("config.json", "pretune.json")
        assert survives(small) == fine


def header_of(raw: bytes) -> tuple[dict[str, Any], bytes]:
    size = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + size]), raw[8 + size :]


def with_header(header: Any, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def test_safetensors_that_lie(small: Path) -> None:
    path = small / "model.safetensors"
    header, data = header_of(path.read_bytes())
    names = [name for name in header if name != "__metadata__"]
    first, second = names[:2]

    def changed(name: str, **entry: Any) -> bytes:
        return with_header({**header, name: {**header[name], **entry}}, data)

    lies = [
        *(size.to_bytes(8, "little") + b"{}" for size in (0, 3, 2**31, 2**62, 2**64 - 1)),
        *(
            changed(first, data_offsets=[a, b])
            for a, b in [(0, 2**62), (-1, 4), (8, 4), (2**63, 9)]
        ),
        changed(first, data_offsets=header[second]["data_offsets"]),
        changed(first, data_offsets=["0", "4"]),
        *(changed(first, dtype=kind) for kind in ("I8", "F8_E4M3", "F99", "", None, 3, "\ud800")),
        *(changed(first, shape=s) for s in ([2**62, 4], [-1], [1e3], "8", None, [[8]], [0, 2**62])),
        with_header({}, b""),
        with_header({**header, "__metadata__": {"a": 1}}, data),
        with_header({**header, "__metadata__": [1]}, data),
        with_header([1], data),
        with_header(b"\xff\xfe{}", data),
        with_header(b'{"\xff": 1}', data),
        with_header(b"[" * 10**5, data),
        with_header(b'{"a": ' + b"1" * 5000 + b"}", data),
        with_header(header, data + b"\0" * 8),
        with_header(header, data[:-8]),
    ]
    for raw in lies:
        path.write_bytes(raw)
        assert not survives(small), raw[:200]


def test_safetensors_with_flipped_bits(small: Path) -> None:
    path = small / "model.safetensors"
    raw = path.read_bytes()
    end = 8 + int.from_bytes(raw[:8], "little")
    dice = random.Random(0)
    outcomes = []
    for _ in range(150):
        damaged = bytearray(raw)
        for _ in range(dice.choice((1, 1, 3))):
            damaged[dice.randrange(end)] ^= 1 << dice.randrange(8)
        path.write_bytes(damaged)
        outcomes.append(survives(small))
    assert outcomes.count(False) > 75
    for _ in range(20):
        path.write_bytes(raw[: dice.randrange(len(raw))])
        assert not survives(small)


@pytest.mark.parametrize(
    "name",
    ["../../x", "/etc/passwd", "a\x00b", "x" * 10**5, "\ud800", ".", "..", "", "no.safetensors"],
)
@pytest.mark.parametrize("index", ["model.safetensors.index.json", "pytorch_model.bin.index.json"])
def test_index_of_shards(small: Path, index: str, name: str) -> None:
    (small / "model.safetensors").rename(small / "other")
    shutil.copy(small / "other", small.parent.parent / "x")
    (small / index).write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(CheckpointError, match=r"index\.json"):
        load(small, allow_pickle=True)


def test_tensorflow_bundles(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(FIXTURES / "tf1", tmp_path / "tf1"))
    assert survives(folder)
    dice = random.Random(0)
    files = [path for path in sorted(folder.iterdir()) if path.name.startswith("bert_model")]
    for path in (*files, folder / "bert_config.json", folder / "vocab.txt"):
        raw = path.read_bytes()
        for _ in range(25):
            path.write_bytes(raw[: dice.randrange(len(raw) - 1)])
            # A shorter vocabulary is one as well.
            assert not survives(folder) or path.name == "vocab.txt"
            damaged = bytearray(raw)
            damaged[dice.randrange(len(raw))] ^= 1 << dice.randrange(8)
            path.write_bytes(damaged)
            survives(folder)
        path.write_bytes(raw)


def test_tokenizers(small: Path, tmp_path: Path) -> None:
    bundle = load(small)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        bundle.tokenizer.save(tmp_path)
        raw = (tmp_path / file).read_bytes()
        dice = random.Random(0)
        for _ in range(60):
            damaged = bytearray(raw)
            at = dice.randrange(len(raw))
            damaged[at : at + dice.choice((1, 1, 9))] = dice.randbytes(1)
            (small / file).write_bytes(damaged[: dice.choice((len(raw), at))])
            survives(small)
        (small / file).unlink()
    vocab = small / "vocab.txt"
    lines = vocab.read_bytes()
    for raw in (
        b"",
        b"\n",
        b"\xff\xfe",
        b"[UNK]\n" * 9,
        lines * 2,
        lines + b"\0" * 99,
        lines[::-1],
    ):
        vocab.write_bytes(raw)
        survives(small)


def test_task_file(small: Path, tmp_path: Path) -> None:
    bundle = load(small)
    (tmp_path / "saved").mkdir()
    save(bundle, tmp_path / "saved")
    path = tmp_path / "saved" / "pretune.json"
    saved = json.loads(path.read_text())
    assert survives(path.parent)
    for section in saved:
        for value in HOSTILE:
            path.write_text(json.dumps({**saved, section: value}))
            survives(path.parent)
            for key in (*saved[section], "name", "labels", "text"):
                path.write_text(json.dumps({**saved, section: {**saved[section], key: value}}))
                survives(path.parent, converting=False)
