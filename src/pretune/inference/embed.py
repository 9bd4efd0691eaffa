"""Embeddings: one vector for each text, in memory or written to a file as they are computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pretune.bundle.bundle import Bundle
from pretune.checkpoints.atomic_io import atomic_file
from pretune.data.batch import Feature, FeatureSet, PackedBatch
from pretune.data.batch_order import batches_by_length
from pretune.data.columns import as_text, label_column, text_columns
from pretune.data.readers.files import TABLE_SUFFIXES, read
from pretune.data.records import Records
from pretune.errors import DataError, RunError, did_you_mean
from pretune.inference.predict import file_lines
from pretune.inference.runtime import choose_device, precision_context
from pretune.models.backbone import Backbone

Vectors = NDArray[np.float32]

#: Whether the model is causal -> its poolings, the default first. All tokens of an encoder see the
#: whole text, and at most the next-sentence task has trained `[CLS]` to stand for it: the mean is
#: the better vector (Reimers & Gurevych 2019, table 6). In a decoder only the last token sees all.
POOLINGS = {False: ("mean", "cls"), True: ("last", "mean")}
#: Texts that are tokenized, sorted by length and held as vectors at a time.
TEXTS_AT_A_TIME = 4096
#: Formats of files with vectors.
FORMATS = (".npy", ".parquet")
#: The column of the vectors in a Parquet file.
COLUMN = "embedding"


@dataclass(frozen=True)
class Neighbour:
    """A text that was found for a query."""

    row: int  # its number (0-based)
    score: float  # the cosine of its vector and the query's, -1 to 1
    text: str


class Embedder:
    """A model that turns texts into vectors.

    Raises:
        RunError: the model does not support this pooling or this `max_length`, or there is no such
            device.
    """

    def __init__(
        self,
        bundle: Bundle,  # a head is not used
        *,
        pooling: str | None = None,  # of `POOLINGS`
        normalize: bool = True,  # make every vector of length 1
        device: str = "auto",  # `auto`, `cpu`, `cuda`, ...
        # `bf16` or `auto` (bf16 on CUDA) is faster and rounds to 3 digits.
        precision: str = "float32",
        batch_tokens: int = 8192,  # at a time; changes memory and speed only
        max_length: int | None = None,  # special tokens included; default: all positions
    ) -> None:
        backbone = bundle.backbone
        self.pooling = _pooling(bundle, backbone, pooling)
        self.max_length = _max_length(bundle, backbone, max_length)
        self.size = backbone.config.size("hidden_size")
        self._normalize = normalize
        self._tokenizer = bundle.tokenizer
        self._device = choose_device(device)
        self._precision = precision
        self._batch_tokens = batch_tokens
        self._model = backbone.to(self._device).eval()

    def embed(
        self,
        texts: Sequence[str],
        *,
        # How errors name a row (0-based).
        where: Callable[[int], str] = lambda row: f"text {row + 1}",
        progress: Callable[[int], None] | None = None,  # called with the number of texts done
    ) -> Vectors:
        """Embed texts.

        Returns:
            `[N, hidden]` float32, in the order of the texts.

        Raises:
            DataError: a text without tokens.
        """
        vectors = np.empty((len(texts), self.size), dtype=np.float32)
        for start, chunk in self.chunks(texts, where=where, progress=progress):
            vectors[start : start + len(chunk)] = chunk
        return vectors

    def chunks(
        self,
        texts: Sequence[str],
        *,
        where: Callable[[int], str] = lambda row: f"text {row + 1}",
        progress: Callable[[int], None] | None = None,
    ) -> Iterator[tuple[int, Vectors]]:
        """Embed texts and yield a part at a time: the row of its first text, and its vectors."""
        for start in range(0, len(texts), TEXTS_AT_A_TIME):
            part = texts[start : start + TEXTS_AT_A_TIME]
            yield start, self._embed_part(part, where, start)
            if progress is not None:
                progress(start + len(part))

    def search(
        self,
        query: str,
        texts: Sequence[str],
        *,
        top_k: int = 5,
        # How errors name a row (0-based).
        where: Callable[[int], str] = lambda row: f"text {row + 1}",
        progress: Callable[[int], None] | None = None,  # called with the number of texts done
    ) -> list[Neighbour]:
        """Find the texts nearest to a query by cosine; among equals the earlier one comes first."""
        wanted = _unit(self._embed_part([query], lambda _: "the query"))[0]
        best: list[tuple[float, int]] = []
        for start, vectors in self.chunks(texts, where=where, progress=progress):
            scores = _unit(vectors) @ wanted
            nearest = np.argsort(-scores, kind="stable")[:top_k]
            # Keep only the best so far: the vectors of a large file would not fit in memory.
            best += [(float(scores[i]), start + int(i)) for i in nearest]
            best = sorted(best, key=lambda item: (-item[0], item[1]))[:top_k]
        return [Neighbour(row, score, texts[row]) for score, row in best]

    @torch.inference_mode()
    def _embed_part(
        self, texts: Sequence[str], where: Callable[[int], str], start: int = 0
    ) -> Vectors:
        features = FeatureSet.of(self._features(texts, where, start))
        vectors = np.empty((len(texts), self.size), dtype=np.float32)
        for which in batches_by_length(features.lengths, self._batch_tokens):
            batch = features.batch(which).to(self._device)
            with precision_context(self._device, self._precision):
                pooled = pool(self._model, batch, self.pooling)
            pooled = pooled.float()
            if self._normalize:
                pooled = F.normalize(pooled)
            vectors[batch.index.numpy()] = pooled.cpu().numpy()
        return vectors

    def _features(
        self, texts: Sequence[str], where: Callable[[int], str], start: int
    ) -> Iterator[Feature]:
        encoded = self._tokenizer.encode(texts, max_length=self.max_length)
        for row, text in enumerate(encoded):
            if not text.ids:
                raise DataError(
                    f"{where(start + row)}: a text without tokens",
                    "Remove it, or give it some text.",
                )
            yield Feature(text.ids, None, {}, row, text.truncated)


def pool(model: Backbone, batch: PackedBatch, pooling: str) -> Tensor:
    """Return one vector for each sequence, `[B, hidden]`, computed from its own tokens alone.

    `mean` takes the last hidden states of all tokens (special tokens included, as in
    sentence-transformers), `cls` the first token's, `last` the last token's.
    """
    if pooling == "mean":
        hidden = model(batch).last_hidden_state
        lengths = torch.tensor(batch.layout.lengths, device=hidden.device)
        # Not index_add, whose order of summing differs from run to run on CUDA.
        return torch.segment_reduce(hidden.float(), "mean", lengths=lengths)
    select = batch.first if pooling == "cls" else batch.last
    rows: Tensor = model(batch, select=select).last_hidden_state
    return rows


def _unit(vectors: Vectors) -> Vectors:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: Vectors = vectors / np.maximum(lengths, np.finfo(np.float32).tiny)
    return unit


def _pooling(bundle: Bundle, backbone: Backbone, wanted: str | None) -> str:
    family = bundle.family.model_type
    if not backbone.has_attention:
        raise RunError(
            f"a {family} model gives no vectors of whole texts",
            "Take a BERT, DistilBERT or GPT-2, such as minilm.",
        )
    known = POOLINGS[backbone.causal]
    if wanted is None:
        return known[0]
    # An unknown name, one that makes no sense for the model, or one that its tokenizer lacks.
    every = sorted({name for names in POOLINGS.values() for name in names})
    if wanted not in every:
        raise RunError(f"no pooling is called '{wanted}'", did_you_mean(wanted, every))
    if wanted not in known:
        why = (
            "its first token sees nothing but itself"
            if backbone.causal
            else "its last token is [SEP], which stands for nothing"
        )
        raise RunError(
            f"pooling '{wanted}' makes no sense for a {family} model: {why}",
            f"Take {' or '.join(known)}.",
        )
    if wanted == "cls" and bundle.tokenizer.special_id("cls_token") is None:
        raise RunError(
            "pooling 'cls': the tokenizer of this model has no [CLS]", "Take --pooling mean."
        )
    return wanted


def _max_length(bundle: Bundle, backbone: Backbone, wanted: int | None) -> int:
    limit = backbone.config.size("max_position_embeddings")
    special = bundle.tokenizer.engine.num_special_tokens_to_add(is_pair=False)
    if wanted is None:
        return limit
    if not special < wanted <= limit:
        raise RunError(
            f"max_length {wanted}: this model reads {special + 1} to {limit} tokens",
            "Choose a number in this range.",
        )
    return wanted


def read_texts(
    source: str, *, column: str | None = None, encoding: str = "utf-8", quoting: str = "auto"
) -> tuple[Records, list[str], int]:
    """Read the texts to embed.

    A `.txt` file has one text a line. Blank lines are left out and counted, since the rows of the
    vectors then differ from the numbers of the lines. Without `column` it is guessed. Returns the
    records, the text of each, and the number of blank lines.

    Raises:
        DataError: the source cannot be read, has no such column or several columns with text, or a
            record has no text.
    """
    path, blank = Path(source), 0
    if path.is_file() and path.suffix.lower() not in TABLE_SUFFIXES:
        every = file_lines(path, encoding)
        lines = [(number, line) for number, line in every if line.strip()]
        blank = len(every) - len(lines)
        rows = [{"text": line} for _, line in lines]
        records = Records(rows, source, [number for number, _ in lines], ("text",))
    else:
        named = {} if column is None else {column: column}
        records = read(source, encoding=encoding, quoting=quoting, columns=named)
    columns = text_columns(records, [column] if column else None, label_column(records))
    if len(columns) > 1:
        raise DataError(
            f"{records.origin}: several columns hold text: {', '.join(columns)}",
            f"Name one of them: --column {columns[0]}",
        )
    texts = []
    for row, record in enumerate(records.rows):
        text = as_text(record.get(columns[0]))
        if text is None or not text.strip():
            raise DataError(
                f"{records.where(row, columns[0])}: no text there",
                "Give every record a text, or remove the record.",
            )
        texts.append(text)
    return records, texts, blank


def check_output(path: Path, *, overwrite: bool = False) -> None:
    """Check that vectors can be written to a file, before any are computed."""
    if path.suffix.lower() not in FORMATS:
        raise RunError(
            f"--output {path}: cannot tell the format from the name",
            f"Name it with {' or '.join(FORMATS)}.",
        )
    if not path.resolve().parent.is_dir():
        raise RunError(f"--output {path}: no such folder", "Make it first.")
    if path.is_dir():
        raise RunError(f"--output {path}: is a folder", "Give the name of a file.")
    if path.exists() and not overwrite:
        raise RunError(f"{path}: is there already", "Choose another --output, or --overwrite it.")


def write_vectors(
    embedder: Embedder,
    records: Records,  # their columns go into a Parquet file too
    texts: list[str],  # one for each record
    path: Path,  # appears when it is complete
    *,
    progress: Callable[[int], None] | None = None,  # called with the number of texts done
) -> None:
    """Embed texts and write the vectors: `.npy`, float32 `[N, hidden]`, or `.parquet`."""
    write = _write_npy if path.suffix.lower() == ".npy" else _write_parquet
    chunks = embedder.chunks(texts, where=records.where, progress=progress)
    try:
        with atomic_file(path) as aside:
            write(aside, records, embedder.size, (vectors for _, vectors in chunks))
    except OSError as error:
        raise RunError(
            f"{path}: cannot be written ({error.strerror or error})", "Choose another --output."
        ) from None


def _write_npy(path: Path, records: Records, size: int, parts: Iterator[Vectors]) -> None:
    # The header first, since the number of rows is known; then the rows part by part.
    with path.open("wb") as handle:
        header = {
            "descr": np.lib.format.dtype_to_descr(np.dtype(np.float32)),
            "fortran_order": False,
            "shape": (len(records), size),
        }
        np.lib.format.write_array_header_1_0(handle, header)
        for vectors in parts:
            handle.write(vectors.tobytes())


def _write_parquet(path: Path, records: Records, size: int, parts: Iterator[Vectors]) -> None:
    import pyarrow
    import pyarrow.parquet

    if COLUMN in records.columns:
        raise DataError(
            f"{records.origin}: has a column '{COLUMN}' already", "Rename it, or write a .npy."
        )
    try:
        # Types are found from whole columns, not from a part: a first part may be all empty.
        names, rows = records.columns, records.rows
        table = pyarrow.table({n: pyarrow.array([row.get(n) for row in rows]) for n in names})
    except pyarrow.ArrowException as error:
        raise DataError(
            f"{records.origin}: has a column that Parquet cannot hold ({error})",
            "Give its values one type, or write a .npy.",
        ) from None
    # Then the vectors part by part, each beside its rows.
    field = pyarrow.field(COLUMN, pyarrow.list_(pyarrow.float32(), size))
    with pyarrow.parquet.ParquetWriter(path, table.schema.append(field)) as writer:
        start = 0
        for vectors in parts:
            column = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(vectors.ravel()), size)
            writer.write_table(table.slice(start, len(vectors)).append_column(field, column))
            start += len(vectors)
