"""Embeddings: one vector for each text, in memory or written to a file as they are computed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pretune.bundle.bundle import Bundle
from pretune.checkpoints.atomic_io import atomic_file
from pretune.checkpoints.sentence_transformers import EmbeddingSettings, embedding_settings
from pretune.data.batch import Feature, FeatureSet, PackedBatch
from pretune.data.batch_order import batches_by_length
from pretune.data.columns import as_text, label_column, text_columns, usual_texts
from pretune.data.prefetch import prefetched
from pretune.data.readers.files import read, table_kind
from pretune.data.records import Records
from pretune.errors import (
    CheckpointError,
    DataError,
    NotFiniteError,
    RunError,
    did_you_mean,
    with_article,
)
from pretune.inference.memory import keep_freed_memory
from pretune.inference.predict import file_lines
from pretune.inference.runtime import (
    check_precision,
    choose_device,
    inference_context,
    usual_batch_tokens,
)
from pretune.models.backbone import Backbone
from pretune.models.config import brief
from pretune.text.byte_stream import is_file
from pretune.tokenizers.tokenizer import lowercasing

Vectors = NDArray[np.float32]

#: Whether the model is causal -> its poolings, the default first. All tokens of an encoder see the
#: whole text, and at most the next-sentence task has trained `[CLS]` to stand for it: the mean is
#: the better vector (Reimers & Gurevych 2019, table 6). In a decoder only the last token sees all.
POOLINGS = {
    False: ("mean", "cls", "max", "mean_sqrt_len_tokens"),
    True: ("last", "mean", "max", "mean_sqrt_len_tokens"),
}
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
    # The cosine of its vector and the query's, -1 to 1; or as the model's folder compares vectors.
    score: float
    text: str


@dataclass(frozen=True)
class Prompts:
    """What comes before a text: before all, or before those of a search and before its query."""

    text: str = ""
    searched: str = ""
    query: str = ""


class Embedder:
    """A model that turns texts into vectors.

    What sentence-transformers' files beside the model say holds where nothing is asked for.

    Attributes:
        settings: what those files say; None where there are none.
        pooling: of `POOLINGS`.
        normalize: whether vectors have length 1.
        max_length: most tokens of a text.
        prompts: what comes before a text.
        size: numbers of a vector.
        cut: texts that were cut to `max_length` so far.

    Raises:
        RunError: the model does not support this pooling or this `max_length`, it has no such
            prompt, or there is no such device.
        CheckpointError: a file of sentence-transformers is damaged, or asks for what we do not
            compute while no pooling is named.
    """

    def __init__(
        self,
        bundle: Bundle,  # a head is not used
        *,
        pooling: str | None = None,  # of `POOLINGS`
        normalize: bool | None = None,  # make every vector of length 1
        # Put this before every text; the query of a search is then read as it is.
        prompt: str | None = None,
        prompt_name: str | None = None,  # the same, by the name that the model's folder gives it
        device: str = "auto",  # `auto`, `cpu`, `cuda`, ...
        # `bf16` or `auto` (bf16 on CUDA) is faster and rounds to 3 digits; `int8` multiplies
        # in 8 bits.
        precision: str = "float32",
        # At a time; changes memory and speed only. Default: what suits the device.
        batch_tokens: int | None = None,
        # Special tokens included; default: as the folder says, else all positions.
        max_length: int | None = None,
    ) -> None:
        backbone, hidden = bundle.backbone, bundle.backbone.config.size("hidden_size")
        # What sentence-transformers would do with this model; a pooling that is named replaces all
        # that we cannot compute.
        own = None if bundle.folder is None else embedding_settings(bundle.folder)
        if own is not None and own.unsupported is not None and pooling is None:
            raise CheckpointError(
                f"{own.unsupported}: pretune cannot compute such vectors yet",
                "Use sentence-transformers for this model; or take vectors without it, of the "
                "Transformer alone, by naming a pooling: --pooling mean.",
            )
        self.settings = own
        # What is asked for, else what the folder says, else what suits the model.
        self.pooling = _pooling(bundle, backbone, pooling, None if own is None else own.pooling)
        self.normalize = (own is None or own.normalize) if normalize is None else normalize
        self.max_length = _max_length(bundle, backbone, max_length, own)
        self.prompts = _prompts(own, prompt, prompt_name)
        self._hidden = hidden
        self.size = min(hidden, own.size or hidden) if own is not None else hidden
        # Vectors get their length before they are cut to size, unless the person asks for length 1.
        self._normalize_last = normalize is True and self.size < hidden
        self._include_prompt = own is None or own.include_prompt
        lowercase = own is not None and own.lowercase
        self._tokenizer = lowercasing(bundle.tokenizer) if lowercase else bundle.tokenizer
        self.cut = 0
        self._device = choose_device(device)
        check_precision(precision, self._device)
        self._precision = precision
        usual = usual_batch_tokens(self._device)
        self.batch_tokens = usual if batch_tokens is None else batch_tokens
        keep_freed_memory()
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
        yield from self._chunks(texts, self.prompts.text, where, progress)

    def _chunks(
        self,
        texts: Sequence[str],
        prompt: str,
        where: Callable[[int], str],
        progress: Callable[[int], None] | None,
    ) -> Iterator[tuple[int, Vectors]]:
        left_out = self._left_out(prompt)

        def tokenize(start: int) -> tuple[int, FeatureSet]:
            part = texts[start : start + TEXTS_AT_A_TIME]
            return start, FeatureSet.of(self._features(part, prompt, left_out, where, start))

        # The next texts are tokenized while the model reads.
        starts = range(0, len(texts), TEXTS_AT_A_TIME)
        for start, features in prefetched(tokenize, starts, workers=1):
            self.cut += features.truncated
            yield start, self._embed_part(features, left_out)
            if progress is not None:
                progress(start + len(features))

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
        """Find the texts nearest to a query; among equals the earlier one comes first.

        Near is what the model's folder says, else the cosine.
        """
        left_out = self._left_out(self.prompts.query)
        of_query = self._features([query], self.prompts.query, left_out, lambda _: "the query")
        wanted = self._embed_part(FeatureSet.of(of_query), left_out)[0]
        similarity = "cosine" if self.settings is None else self.settings.similarity
        best: list[tuple[float, int]] = []
        for start, vectors in self._chunks(texts, self.prompts.searched, where, progress):
            scores = _scores(vectors, wanted, similarity)
            nearest = np.argsort(-scores, kind="stable")[:top_k]
            # Keep only the best so far: the vectors of a large file would not fit in memory.
            best += [(float(scores[i]), start + int(i)) for i in nearest]
            best = sorted(best, key=lambda item: (-item[0], item[1]))[:top_k]
        return [Neighbour(row, score, texts[row]) for score, row in best]

    def _embed_part(self, features: FeatureSet, left_out: int) -> Vectors:
        return self.finished(self.pooled(features, left_out))

    @torch.inference_mode()
    def pooled(self, features: FeatureSet, left_out: int = 0) -> Tensor:
        """Run the model over features that `tokenize` made.

        Args:
            features: of any number of texts.
            left_out: tokens at the beginning of each that are not pooled.

        Returns:
            `[N, hidden]` float32 on the host, in their order; not yet of length 1, nor cut.

        Raises:
            NotFiniteError: the weights are broken.
        """
        states = torch.empty(len(features), self._hidden)
        for which in batches_by_length(features.lengths, self.batch_tokens):
            batch = features.batch(which).to(self._device)
            with inference_context(self._device, self._precision):
                pooled = pool(self._model, batch, self.pooling, left_out)
            states[batch.index] = pooled.float().cpu()
        if not bool(states.isfinite().all()):
            raise NotFiniteError
        return states

    def finished(
        self, pooled: Tensor, *, normalize: bool | None = None, size: int | None = None
    ) -> Vectors:
        """Make vectors of what `pooled` gave.

        Args:
            pooled: `[N, hidden]` float32.
            normalize: whether vectors have length 1; default: as the embedder says.
            size: how many of their numbers to keep, and then give them length 1 anew, as for
                embeddings of the Matryoshka kind; default: as the embedder says.
        """
        if size is not None:
            pooled = pooled[:, :size]
        unit = self.normalize if normalize is None else normalize
        if unit:
            pooled = F.normalize(pooled)
        if size is None:
            pooled = pooled[:, : self.size]
            if self._normalize_last or (normalize is True and self.size < self._hidden):
                pooled = F.normalize(pooled)
        vectors: Vectors = pooled.numpy()
        return vectors

    def tokenize(
        self,
        texts: Sequence[str],
        prompt: str | None = None,
        *,
        where: Callable[[int], str] = lambda row: f"text {row + 1}",
    ) -> tuple[FeatureSet, int]:
        """Make texts ready for `pooled`; any thread may do it.

        Args:
            texts: at least one.
            prompt: what to put before each; default: as the embedder says.
            where: how errors name a row (0-based).

        Returns:
            the features, and how many tokens at the beginning of each are not pooled.

        Raises:
            DataError: a text without tokens.
            RunError: the prompt leaves no room for a text.
        """
        before = self.prompts.text if prompt is None else prompt
        left_out = self._left_out(before)
        return FeatureSet.of(self._features(texts, before, left_out, where)), left_out

    def _features(
        self,
        texts: Sequence[str],
        prompt: str,
        left_out: int,  # of the prompt's tokens, see `_left_out`
        where: Callable[[int], str],
        start: int = 0,
    ) -> Iterator[Feature]:
        prompted = [prompt + text for text in texts]
        encoded = self._tokenizer.encode(prompted, max_length=self.max_length)
        for row, text in enumerate(encoded):
            if len(text.ids) <= left_out:
                after = f" after the prompt {brief(repr(prompt))}" if left_out else ""
                raise DataError(
                    f"{where(start + row)}: a text without tokens{after}",
                    "Remove it, or give it some text.",
                )
            yield Feature(text.ids, None, {}, row, text.truncated)

    def _left_out(self, prompt: str) -> int:
        """Return how many tokens at the beginning of each text are not pooled.

        Raises:
            RunError: the prompt leaves no room for a text.
        """
        if not prompt:
            return 0
        (encoded,) = self._tokenizer.encode([prompt])
        if len(encoded.ids) >= self.max_length:
            raise RunError(
                f"prompt {brief(repr(prompt))}: has {len(encoded.ids)} tokens of the "
                f"{self.max_length} that are read",
                "Shorten it, or read more: --max-length.",
            )
        # As sentence-transformers counts: all but a special token that ends a text.
        special = {self._tokenizer.special_id(name) for name in self._tokenizer.special}
        whole = len(encoded.ids) - (encoded.ids[-1] in special)
        return 0 if self._include_prompt else whole


def pool(model: Backbone, batch: PackedBatch, pooling: str, left_out: int = 0) -> Tensor:
    """Return one vector for each sequence, `[B, hidden]`, computed from its own tokens alone.

    `mean` takes the last hidden states of all tokens (special tokens included, as in
    sentence-transformers), `max` their largest values, `mean_sqrt_len_tokens` their sum divided by
    the square root of their number; `cls` is the first token's, `last` the last token's.

    Args:
        model: a backbone.
        batch: sequences, each longer than `left_out`.
        pooling: of `POOLINGS`.
        left_out: tokens at the beginning of each sequence that are seen, but not pooled.
    """
    # Only the last layer can leave out tokens: the others see all of them.
    if pooling in ("cls", "last"):
        first = batch.where(batch.positions == left_out) if left_out else batch.first
        select = batch.last if pooling == "last" else first
        rows: Tensor = model(batch, select=select).last_hidden_state
        return rows
    pooled = batch.where(batch.positions >= left_out) if left_out else None
    layout = batch.layout if pooled is None else pooled.layout
    hidden = model(batch, select=pooled).last_hidden_state.float()
    lengths = torch.tensor(layout.lengths, device=hidden.device)
    # Not index_add, whose order of summing differs from run to run on CUDA.
    if pooling == "mean_sqrt_len_tokens":
        return torch.segment_reduce(hidden, "sum", lengths=lengths) / lengths.sqrt()[:, None]
    return torch.segment_reduce(hidden, pooling, lengths=lengths)


def _scores(vectors: Vectors, query: Vectors, similarity: str) -> Vectors:
    """Compare each vector with the query's, `[N]`; larger is nearer."""
    if similarity in ("cosine", "dot"):
        cosine = similarity == "cosine"
        scores = _unit(vectors) @ _unit(query[None])[0] if cosine else vectors @ query
    else:
        scores = -np.linalg.norm(vectors - query, axis=1, ord=2 if similarity == "euclidean" else 1)
    compared: Vectors = scores
    return compared


def _unit(vectors: Vectors) -> Vectors:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: Vectors = vectors / np.maximum(lengths, np.finfo(np.float32).tiny)
    return unit


def _pooling(bundle: Bundle, backbone: Backbone, wanted: str | None, own: str | None) -> str:
    """Choose the pooling: the one asked for, else the folder's own, else the model's default."""
    family = bundle.family.model_type
    # A recurrent or window model has a state after each token, and none of the text.
    if not backbone.has_attention:
        raise RunError(
            f"{with_article(family)} model gives no vectors of whole texts",
            "Take a BERT, DistilBERT or GPT-2, such as minilm.",
        )
    # What the makers of a model chose needs no sense that we see in it.
    known = POOLINGS[backbone.causal]
    if wanted is None or wanted == own:
        return own or known[0]
    # No pooling at all, by any model.
    every = sorted({name for names in POOLINGS.values() for name in names})
    if wanted not in every:
        raise RunError(f"no pooling is called '{wanted}'", did_you_mean(wanted, every))
    # One that looks at a token which knows nothing of the text.
    if wanted not in known:
        why = (
            "its first token sees nothing but itself"
            if backbone.causal
            else "its last token is [SEP], which stands for nothing"
        )
        raise RunError(
            f"pooling '{wanted}' makes no sense for {with_article(family)} model: {why}",
            f"Take {', '.join(known[:-1])} or {known[-1]}.",
        )
    # The first token of a text would be any word.
    if wanted == "cls" and bundle.tokenizer.special_id("cls_token") is None:
        raise RunError(
            "pooling 'cls': the tokenizer of this model has no [CLS]", "Take --pooling mean."
        )
    return wanted


def _max_length(
    bundle: Bundle, backbone: Backbone, wanted: int | None, own: EmbeddingSettings | None
) -> int:
    limit = backbone.config.size("max_position_embeddings")
    special = bundle.tokenizer.engine.num_special_tokens_to_add(is_pair=False)
    # A folder may say a length beyond the positions, which no text can reach.
    length = limit if own is None or own.max_length is None else min(own.max_length, limit)
    length = length if wanted is None else wanted
    if not special < length <= limit:
        where = f"{own.source}: its " if own is not None and wanted is None else ""
        raise RunError(
            f"{where}max_length {length}: this model reads {special + 1} to {limit} tokens",
            "Choose a number in this range: --max-length.",
        )
    return length


def _prompts(own: EmbeddingSettings | None, prompt: str | None, name: str | None) -> Prompts:
    """Choose the prompts: the one asked for, else the folder's as sentence-transformers does."""
    known = {} if own is None else own.prompts
    if prompt is not None and name is not None:
        raise RunError("a prompt and the name of a prompt at once", "Give one of the two.")
    if name is not None and name not in known:
        hint = did_you_mean(name, known) if known else "The model's folder names none."
        raise RunError(f"no prompt is called '{name}'", hint)
    if prompt is not None or name is not None:
        text = prompt if prompt is not None else known[name or ""]
        return Prompts(text, text)
    if own is None:
        return Prompts()
    # As encode, encode_document and encode_query of sentence-transformers.
    usual = "" if own.default_prompt is None else known[own.default_prompt]
    return Prompts(usual, known["document"], known["query"])


def settings_note(embedder: Embedder, *, search: bool = False) -> str | None:
    """Tell which settings of sentence-transformers are used, and which the person replaced.

    Returns:
        a line for people; None where the model's folder has no such settings.
    """
    own = embedder.settings
    if own is None:
        return None
    # Each setting as it is used, and as the folder has it.
    usual, prompts = _prompts(own, None, None), embedder.prompts
    pairs: list[tuple[str, object, object]] = [
        ("pooling", embedder.pooling, own.pooling),
        ("max_length", embedder.max_length, own.max_length or embedder.max_length),
        ("normalize", embedder.normalize, own.normalize),
    ]
    if search:
        pairs.append(("prompt", prompts.searched, usual.searched))
        pairs.append(("prompt of the query", prompts.query, usual.query))
        pairs.append(("similarity", own.similarity, own.similarity))
    else:
        pairs.append(("prompt", prompts.text, usual.text))
    shown = [
        f"{name} {_shown(used)}" + ("" if used == theirs else f" (the folder: {_shown(theirs)})")
        for name, used, theirs in pairs
    ]
    without = f"; without: {own.unsupported}" if own.unsupported else ""
    return f"sentence-transformers settings of {own.source}: {', '.join(shown)}{without}"


def _shown(value: object) -> str:
    """A setting as text, a prompt in quotes, with no control characters."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return brief(value) if isinstance(value, int) else brief(repr(value))


def read_texts(
    source: str, *, column: str | None = None, encoding: str = "utf-8", quoting: str = "auto"
) -> tuple[Records, list[str], list[int]]:
    """Read the texts to embed.

    A `.txt` file has one text a line. Without `column` it is guessed. Returns the records, the text
    of each, and the numbers of the lines or rows (1-based) without text. These have no vector and
    are left out: the rows of the vectors have other numbers than the lines then.

    Raises:
        DataError: the source cannot be read, has no such column or several columns with text, or no
            record has a text.
    """
    path, kind = Path(source), None
    if is_file(path):
        kind = table_kind(path, partial(_names_texts, column), encoding=encoding)
    if is_file(path) and kind is None:
        lines = file_lines(path, encoding)
        rows = [{"text": line} for _, line in lines]
        records = Records(rows, source, [number for number, _ in lines], ("text",))
    else:
        named = {} if column is None else {column: column}
        records = read(source, encoding=encoding, quoting=quoting, columns=named, kind=kind)
    columns = text_columns(records, [column] if column else None, label_column(records))
    if len(columns) > 1:
        raise DataError(
            f"{records.origin}: several columns hold text: {', '.join(columns)}",
            f"Name one of them: --column {columns[0]}",
        )
    # Records without text are left out.
    every = [as_text(record.get(columns[0])) or "" for record in records.rows]
    filled = [row for row, text in enumerate(every) if text.strip()]
    if not filled:
        raise DataError(
            f"{records.origin}: no text in column '{columns[0]}'", "Name another: --column NAME"
        )
    numbers = records.lines or records.numbers or range(1, len(records) + 1)
    blank = [number for number, text in zip(numbers, every, strict=True) if not text.strip()]
    return records.take(filled) if blank else records, [every[row] for row in filled], blank


def _names_texts(column: str | None, columns: Collection[str]) -> bool:
    """Whether columns have the name that a person gave, or else usual ones for texts."""
    return usual_texts(columns) is not None if column is None else column in columns


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
