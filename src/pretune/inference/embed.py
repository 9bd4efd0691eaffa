"""Texts as vectors: one for each, from a model's last hidden states, without padding."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pretune.bundle.bundle import Bundle
from pretune.data.batch import Feature, FeatureSet, PackedBatch
from pretune.data.batch_order import batches_by_length
from pretune.errors import DataError, RunError, did_you_mean
from pretune.inference.runtime import choose_device, precision_context
from pretune.models.backbone import Backbone

Vectors = NDArray[np.float32]

#: By whether a token sees only those before it. An encoder's tokens all see the whole text, and
#: nothing but the next-sentence task, if any, has trained `[CLS]` to stand for it: the mean is the
#: better vector (Reimers & Gurevych 2019, table 6). In a decoder only the last token has seen all.
POOLINGS = {False: ("mean", "cls"), True: ("last", "mean")}
#: Texts tokenized, sorted by length and held as vectors at a time.
CHUNK = 4096


@dataclass(frozen=True)
class Neighbour:
    """A text that is near another.

    Attributes:
        row: which one (0-based).
        score: cosine of the angle between the two vectors, -1 to 1.
        text: the text.
    """

    row: int
    score: float
    text: str


class Embedder:
    """A model that turns texts into vectors.

    Args:
        bundle: from `pretune.bundle.bundle.load`; of a model with a head, its backbone is used.
        pooling: `mean` of the last hidden states of all tokens (special ones too, as
            sentence-transformers has it), that of `cls` (the first token), or of the `last` token.
            Default: `mean` for encoders, `last` for decoders.
        normalize: make every vector of length 1, so that a dot product is a cosine.
        device: `auto`, `cpu`, `cuda`, ...
        precision: `float32`; `bf16` or `auto` (bf16 on CUDA) is faster and rounds to 3 digits.
        batch_tokens: tokens at a time; changes memory and speed only.
        max_length: tokens of a text, special ones too; what is over it is cut. Default: as many as
            the model has positions.

    Raises:
        RunError: a pooling that this model has not, a `max_length` that it cannot read, or no such
            device.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        pooling: str | None = None,
        normalize: bool = True,
        device: str = "auto",
        precision: str = "float32",
        batch_tokens: int = 8192,
        max_length: int | None = None,
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
        where: Callable[[int], str] = lambda row: f"text {row + 1}",
        progress: Callable[[int], None] | None = None,
    ) -> Vectors:
        """`[N, hidden]` float32, in the order of the texts.

        Args:
            texts: N of them.
            where: names a text in an error.
            progress: called with the number of texts done.

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
        """What `embed` gives, in pieces: the first row of each and its vectors, in order."""
        for start in range(0, len(texts), CHUNK):
            some = texts[start : start + CHUNK]

            def place(row: int, start: int = start) -> str:
                return where(start + row)

            yield start, self._some(some, place)
            if progress is not None:
                progress(start + len(some))

    def search(
        self,
        query: str,
        texts: Sequence[str],
        *,
        top_k: int = 5,
        where: Callable[[int], str] = lambda row: f"text {row + 1}",
        progress: Callable[[int], None] | None = None,
    ) -> list[Neighbour]:
        """The texts nearest to another by cosine, nearest first; of equals the earlier ones.

        No more than a chunk of vectors is held.
        """
        wanted = _unit(self._some([query], lambda _: "the query"))[0]
        best: list[tuple[float, int]] = []
        for start, vectors in self.chunks(texts, where=where, progress=progress):
            scores = _unit(vectors) @ wanted
            first = np.argsort(-scores, kind="stable")[:top_k]
            best += [(float(scores[i]), start + int(i)) for i in first]
            best = sorted(best, key=lambda found: (-found[0], found[1]))[:top_k]
        return [Neighbour(row, score, texts[row]) for score, row in best]

    @torch.inference_mode()
    def _some(self, texts: Sequence[str], where: Callable[[int], str]) -> Vectors:
        features = FeatureSet.of(self._features(texts, where))
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

    def _features(self, texts: Sequence[str], where: Callable[[int], str]) -> Iterator[Feature]:
        encoded = self._tokenizer.encode(texts, max_length=self.max_length)
        for row, one in enumerate(encoded):
            if not one.ids:
                raise DataError(
                    f"{where(row)}: a text without tokens", "Remove it, or give it some text."
                )
            yield Feature(one.ids, None, {}, row, one.truncated)


def pool(model: Backbone, batch: PackedBatch, pooling: str) -> Tensor:
    """`[B, hidden]`: one vector a sequence, of its own tokens alone."""
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
    most = backbone.config.size("max_position_embeddings")
    special = bundle.tokenizer.engine.num_special_tokens_to_add(is_pair=False)
    if wanted is None:
        return most
    if not special < wanted <= most:
        raise RunError(
            f"max_length {wanted}: this model reads {special + 1} to {most} tokens",
            "Choose a number among those.",
        )
    return wanted
