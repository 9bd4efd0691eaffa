"""A prepared corpus beside the texts it was made from, and beside one made in another way."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as RustTokenizer

from pretune.corpus.dedupe import digest, held_back
from pretune.corpus.documents import ReadingOptions
from pretune.corpus.encode import Cleaning, first_tokens
from pretune.corpus.pipeline import Prepared, Settings, prepare
from pretune.corpus.store import Corpus
from pretune.corpus.unfinished import Journal
from pretune.errors import DataError, PretuneError
from pretune.text.sentence_ends import sentence_spans
from pretune.tokenizers.load import load_tokenizer
from tests.corpus.conftest import contents

SMALL = Settings(shard_tokens=2700, validation=0.1, near_duplicates=0.9)
RAW = Settings(cleaning=Cleaning(nfc=False, control=False, spaces=False), keep_duplicates=True)


@pytest.fixture(scope="module")
def whole(
    tmp_path_factory: pytest.TempPathFactory, corpus_file: Path, bpe_folder: Path
) -> tuple[Path, Prepared]:
    """Made in one go by one process."""
    folder = tmp_path_factory.mktemp("whole") / "corpus"
    return folder, prepare([corpus_file], bpe_folder, folder, SMALL, workers=1)


def test_every_document_is_there(
    whole: tuple[Path, Prepared], corpus_file: Path, bpe_folder: Path
) -> None:
    folder, made = whole
    train, held = Corpus.open(folder, verify=True), Corpus.open(folder / "validation", verify=True)
    engine = RustTokenizer.from_file(str(bpe_folder / "tokenizer.json"))
    stored = {True: [], False: []}
    for corpus, key in ((train, False), (held, True)):
        stored[key] = [engine.decode(corpus.document(i).tolist()) for i in range(len(corpus))]
    texts = corpus_file.read_text(encoding="utf-8").strip().split("\n\n")
    cleaned = ["\n".join(line.strip() for line in text.split("\n")) for text in texts]
    unique = {" ".join(text.split()): text for text in reversed(cleaned)}
    dropped = made.train["reading"]["dropped"]
    # A copy of a document that was dropped for its likeness to another is dropped for that too.
    assert 0 < dropped["near-duplicate"] < 20
    assert len(unique) - 20 < len(train) + len(held) < len(unique)
    assert len(train) + len(held) + sum(dropped.values()) == len(texts) == 1000
    assert set(stored[True]) | set(stored[False]) <= set(unique.values())
    assert stored[False] == sorted(stored[False], key=cleaned.index)
    assert all(held_back(digest(text), 0.1) for text in stored[True])
    assert not any(held_back(digest(text), 0.1) for text in stored[False])
    for i in range(0, len(train), 37):
        assert train.size(i) == (len(stored[False][i]), len(stored[False][i].encode()))
    assert train.chars == sum(map(len, stored[False]))
    assert train.bytes == sum(len(text.encode()) for text in stored[False])
    assert train.tokens == train.lengths().sum()
    sizes = [shard["tokens"] for shard in made.train["shards"]]
    assert len(sizes) > 3
    assert max(sizes) <= 2700


PIECES = ["The film. It", " Mr. X?\n", "好。”看", "  "]
DOCUMENTS = st.lists(
    st.lists(
        st.one_of(
            st.text(max_size=30), st.sampled_from(["The film. It", " Mr. X?\n", "好。”看", "  "])
        ),
        min_size=1,
        max_size=6,
    ).map("".join),
    min_size=1,
    max_size=5,
)


def check_random_documents(
    tmp_path: Path, bpe_folder: Path, tiny_vocab_folder: Path, texts: list[str], kind: str
) -> None:
    """The tokens are those of the whole text; each sentence has those that end in it."""
    shutil.rmtree(tmp_path / "c", ignore_errors=True)
    rows = [json.dumps({"text": text}) for text in texts]
    (tmp_path / "t.jsonl").write_text("\n".join(rows))
    tokenizer = bpe_folder if kind == "bpe" else tiny_vocab_folder
    engine = RustTokenizer.from_str(load_tokenizer(tokenizer).engine.to_str())
    kept = [t for t in texts if t.strip() and engine.encode(t, add_special_tokens=False).ids]
    if not kept:
        with pytest.raises(DataError, match="no document is left"):
            prepare([tmp_path / "t.jsonl"], tokenizer, tmp_path / "c", RAW, workers=1)
        return
    prepare([tmp_path / "t.jsonl"], tokenizer, tmp_path / "c", RAW, workers=1)
    corpus = Corpus.open(tmp_path / "c", verify=True)
    assert len(corpus) == len(kept)
    for i, text in enumerate(kept):
        encoding = engine.encode(text, add_special_tokens=False)
        assert corpus.document(i).tolist() == encoding.ids
        parts = corpus.sentences(i)
        assert np.concatenate(parts).tolist() == encoding.ids
        assert all(len(part) for part in parts)
        begins = [start for start, _ in sentence_spans(text)]
        of_token = [
            max(sum(start < end for start in begins), 1) for _, end in encoding.offsets
        ]  # the sentence in which the token's last character is
        expected = [of_token.count(s) for s in sorted(set(of_token))]
        assert [len(part) for part in parts] == expected


def random_documents(count: int) -> Callable[..., None]:
    """The property as a test with so many examples."""
    given_documents = given(texts=DOCUMENTS, kind=st.sampled_from(["bpe", "wordpiece"]))
    shared = [HealthCheck.function_scoped_fixture]
    return settings(deadline=None, max_examples=count, suppress_health_check=shared)(
        given_documents(check_random_documents)
    )


test_random_documents = random_documents(10)
test_many_random_documents = pytest.mark.slow(random_documents(100))


def test_sentences_of_a_byte_level_tokenizer_begin_with_their_space(
    tmp_path: Path, bpe_folder: Path
) -> None:
    (tmp_path / "t.txt").write_text("The good film! Was it bad? “不好！”他说。")
    prepare([tmp_path / "t.txt"], bpe_folder, tmp_path / "c", workers=1)
    engine = RustTokenizer.from_file(str(bpe_folder / "tokenizer.json"))
    parts = Corpus.open(tmp_path / "c").sentences(0)
    assert [engine.decode(part.tolist()) for part in parts] == [
        "The good film!",
        " Was it bad? ",  # this vocabulary has a space of its own before “
        "“不好！”",
        "他说。",
    ]


def test_sentences_without_tokens() -> None:
    offsets = np.array([[0, 1], [0, 0], [4, 9], [9, 12]])
    assert first_tokens(offsets, [0, 2, 4, 10]).tolist() == [0, 2, 3]


def test_special_tokens_in_a_text_are_text(tmp_path: Path, bpe_folder: Path) -> None:
    (tmp_path / "t.txt").write_text("the <|endoftext|> film")
    prepare([tmp_path / "t.txt"], bpe_folder, tmp_path / "c", workers=1)
    engine = RustTokenizer.from_file(str(bpe_folder / "tokenizer.json"))
    tokens = Corpus.open(tmp_path / "c").document(0)
    assert engine.token_to_id("<|endoftext|>") not in tokens
    assert engine.decode(tokens.tolist()) == "the <|endoftext|> film"


def test_other_processes_make_the_same_bytes(
    whole: tuple[Path, Prepared], tmp_path: Path, corpus_file: Path, bpe_folder: Path
) -> None:
    prepare([corpus_file], bpe_folder, tmp_path / "c", SMALL, workers=2)
    assert contents(tmp_path / "c") == contents(whole[0])
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


SCRIPT = """
import os, signal, sys
from pretune.corpus import executors, pipeline
from pretune.corpus.pipeline import Settings, prepare

source, tokenizer, output, calls, workers = sys.argv[1:]
pipeline.NOTE_SECONDS = 0
executors.BATCH_DOCUMENTS = 33
left = int(calls)
def counted(function):
    def call(*arguments, **named):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **named)
    return call
for name in ("fsync", "replace", "rename", "unlink", "truncate"):
    setattr(os, name, counted(getattr(os, name)))
if __name__ == "__main__":
    settings = Settings(shard_tokens=2700, validation=0.1, near_duplicates=0.9)
    prepare([source], tokenizer, output, settings, workers=int(workers))
"""


@pytest.fixture
def start(
    tmp_path: Path, corpus_file: Path, bpe_folder: Path
) -> Callable[..., subprocess.Popen[bytes]]:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)

    def begin(calls: int, workers: int = 1) -> subprocess.Popen[bytes]:
        output = tmp_path / "out" / "c"
        arguments = [str(corpus_file), str(bpe_folder), str(output), str(calls), str(workers)]
        return subprocess.Popen([sys.executable, str(script), *arguments])

    return begin


@pytest.mark.slow
def test_killed_again_and_again_it_is_the_same(
    whole: tuple[Path, Prepared], tmp_path: Path, start: Callable[..., Any]
) -> None:
    """By SIGKILL, at calls that change what is on the disk."""
    kills = 0
    for calls in (3, 40, 151, 97, 62, 230, 181, 0):
        process = start(calls)
        process.wait(timeout=300)
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL
        assert not (tmp_path / "out" / "c").exists()
        kills += 1
    assert kills >= 4
    assert contents(tmp_path / "out" / "c") == contents(whole[0])
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["c"]


@pytest.mark.slow
def test_killed_from_outside_with_workers(
    whole: tuple[Path, Prepared], tmp_path: Path, start: Callable[..., Any]
) -> None:
    process = start(0, workers=2)
    journal = Journal(tmp_path / "out" / "c").path
    deadline = time.monotonic() + 120
    while not journal.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert len(children) >= 2
    deadline = time.monotonic() + 120
    while any(alive(int(child)) for child in children):  # workers do not outlive their parent
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert start(0, workers=2).wait(timeout=300) == 0
    assert contents(tmp_path / "out" / "c") == contents(whole[0])


def alive(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


class TestTheFolder:
    def test_made_already(
        self, whole: tuple[Path, Prepared], corpus_file: Path, bpe_folder: Path
    ) -> None:
        again = prepare([corpus_file], bpe_folder, whole[0], SMALL)
        assert again.found
        assert again.train == whole[1].train

    def test_made_already_of_another_spelling(
        self, tmp_path: Path, bpe_folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "cw").mkdir()
        text = tmp_path / "cw" / "small.txt"
        text.write_text("one")
        monkeypatch.chdir(tmp_path)
        prepare(["cw/small.txt"], bpe_folder, "c", workers=1)
        monkeypatch.chdir(tmp_path / "cw")
        assert prepare(["small.txt"], bpe_folder, "../c", workers=1).found
        assert prepare([text], bpe_folder, tmp_path / "c", workers=1).found
        before = text.stat()
        text.write_text("two")  # as long as it was
        os.utime(text, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
        with pytest.raises(DataError, match="exists already, with other sources, or with these"):
            prepare([text], bpe_folder, tmp_path / "c", workers=1)
        (tmp_path / "other.txt").write_text("one")
        os.utime(tmp_path / "other.txt", ns=(before.st_atime_ns, before.st_mtime_ns))
        with pytest.raises(DataError, match="with other sources"):
            prepare([tmp_path / "other.txt"], bpe_folder, tmp_path / "c", workers=1)

    def test_made_already_by_an_earlier_version(
        self, tmp_path: Path, bpe_folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "t.txt").write_text("one")
        monkeypatch.chdir(tmp_path)
        prepare(["t.txt"], bpe_folder, "c", workers=1)
        path = tmp_path / "c" / "corpus.json"
        manifest = json.loads(path.read_text())
        manifest["sources"] = [{"name": "t.txt", "size": 3}]
        path.write_text(json.dumps(manifest))
        assert prepare(["./t.txt"], bpe_folder, "c", workers=1).found
        (tmp_path / "t.txt").write_text("longer")
        with pytest.raises(DataError, match="with other sources"):
            prepare(["t.txt"], bpe_folder, "c", workers=1)

    def test_taken_by_another(
        self, whole: tuple[Path, Prepared], corpus_file: Path, bpe_folder: Path
    ) -> None:
        with pytest.raises(DataError, match="exists already, with other settings"):
            prepare([corpus_file], bpe_folder, whole[0])

    def test_taken_by_something_else(
        self, tmp_path: Path, corpus_file: Path, bpe_folder: Path
    ) -> None:
        (tmp_path / "mine.txt").write_text("precious")
        with pytest.raises(DataError, match="no corpus here"):
            prepare([corpus_file], bpe_folder, tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]

    def test_unfinished_with_other_settings(
        self, tmp_path: Path, corpus_file: Path, bpe_folder: Path, start: Callable[..., Any]
    ) -> None:
        assert start(60).wait(timeout=300) == -signal.SIGKILL
        output = tmp_path / "out" / "c"
        with pytest.raises(DataError, match="an unfinished corpus with another settings"):
            prepare([corpus_file], bpe_folder, output, workers=1)
        made = prepare([corpus_file], bpe_folder, output, workers=1, restart=True)
        assert made.validation is None
        assert [path.name for path in output.parent.iterdir()] == ["c"]

    def test_an_error_leaves_nothing(self, tmp_path: Path, bpe_folder: Path) -> None:
        (tmp_path / "t.txt").write_bytes(b"fine\n\n\xff")
        with pytest.raises(DataError, match="line 3"):
            prepare([tmp_path / "t.txt"], bpe_folder, tmp_path / "c", workers=1)
        assert [path.name for path in tmp_path.iterdir()] == ["t.txt"]

    def test_nothing_left(self, tmp_path: Path, bpe_folder: Path) -> None:
        (tmp_path / "t.txt").write_text("a\n\nb\n\na")
        short = Settings(cleaning=Cleaning(min_chars=5))
        with pytest.raises(DataError, match=r"no document is left of 3 \(dropped: 3 short\)"):
            prepare([tmp_path / "t.txt"], bpe_folder, tmp_path / "c", short, workers=1)
        assert [path.name for path in tmp_path.iterdir()] == ["t.txt"]

    def test_all_held_back(self, tmp_path: Path, bpe_folder: Path) -> None:
        (tmp_path / "t.txt").write_text("a")
        options = Settings(validation=0.999)
        with pytest.raises(DataError, match=r"\(1\) were held back(.|\n)*--validation"):
            prepare([tmp_path / "t.txt"], bpe_folder, tmp_path / "c", options, workers=1)
        assert [path.name for path in tmp_path.iterdir()] == ["t.txt"]

    def test_no_name_for_a_folder(self, tmp_path: Path, bpe_folder: Path) -> None:
        (tmp_path / "t.txt").write_text("a")
        with pytest.raises(DataError, match="/: no folder can be made there"):
            prepare([tmp_path / "t.txt"], bpe_folder, "/", workers=1)

    @pytest.mark.parametrize(
        "noted",
        ['{"identity": [], "state": {}}', '{"identity": {}, "state": 1}', "[]", "{"],
    )
    def test_damaged_journal(self, tmp_path: Path, bpe_folder: Path, noted: str) -> None:
        (tmp_path / "t.txt").write_text("a")
        journal = Journal(tmp_path / "c")
        journal.folder.mkdir()
        journal.path.write_text(noted)
        with pytest.raises(DataError, match=r"journal\.json: damaged(.|\n)*--restart"):
            prepare([tmp_path / "t.txt"], bpe_folder, tmp_path / "c", workers=1)
        prepare([tmp_path / "t.txt"], bpe_folder, tmp_path / "c", workers=1, restart=True)

    def test_only_one_at_a_time(self, tmp_path: Path, corpus_file: Path, bpe_folder: Path) -> None:
        with (
            Journal(tmp_path / "c").locked(),
            pytest.raises(DataError, match="being prepared already"),
        ):
            prepare([corpus_file], bpe_folder, tmp_path / "c", workers=1)


def test_counts(tmp_path: Path, tiny_vocab_folder: Path) -> None:
    texts = ["the film ☃", "the  film ☃", "", "x", "good \ud83d", "cafe\u0301 film", "b" * 25]
    rows = [json.dumps({"text": text}) for text in texts]
    (tmp_path / "t.jsonl").write_text("\n".join([*rows, "{"]))
    options = Settings(ReadingOptions(errors="skip", max_chars=20), Cleaning(min_chars=3))
    made = prepare([tmp_path / "t.jsonl"], tiny_vocab_folder, tmp_path / "c", options, workers=1)
    assert made.train["reading"] == {
        "read": 9,
        "cut": 1,
        "unknown": 1,
        "changed": {"nfc": 1},
        "dropped": {"JSON": 1, "duplicate": 1, "empty": 1, "encoding": 1, "short": 1},
    }
    assert made.train["totals"]["documents"] == 4


def test_a_vocabulary_over_16_bits(tmp_path: Path) -> None:
    vocabulary = ["[UNK]", "[CLS]", "[SEP]", *(f"w{i}" for i in range(70_000))]
    (tmp_path / "tok").mkdir()
    (tmp_path / "tok" / "vocab.txt").write_text("\n".join(vocabulary))
    (tmp_path / "t.txt").write_text("w69999 w0")
    prepare([tmp_path / "t.txt"], tmp_path / "tok", tmp_path / "c", workers=1)
    corpus = Corpus.open(tmp_path / "c")
    assert corpus.document(0).tolist() == [70_002, 3]
    raw = (tmp_path / "c" / "shard-00000.tokens.bin").read_bytes()
    assert raw == (70_002).to_bytes(4, "little") + (3).to_bytes(4, "little")


def test_unknown_engine(tmp_path: Path, corpus_file: Path, bpe_folder: Path) -> None:
    with pytest.raises(PretuneError, match="no engine is called 'rays'"):
        prepare([corpus_file], bpe_folder, tmp_path / "c", engine="rays")
    assert os.listdir(tmp_path) == []
