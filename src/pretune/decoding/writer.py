"""Text generation: prompts in, continuations out as they come, by sampling or beam search."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from pretune.decoding.beam_search import BeamSearch, Candidates
from pretune.decoding.continuations import (
    Draft,
    Generation,
    Prompt,
    TextChunk,
    WritingRequest,
    without_blanks,
)
from pretune.decoding.decoding import Decoding
from pretune.decoding.live_batch import LiveBatch
from pretune.decoding.sampling import bound_lengths, penalize, renormalized
from pretune.decoding.sequence_reader import SequenceReader
from pretune.decoding.text_stream import continuation
from pretune.models.language_model import LanguageModel
from pretune.tokenizers.tokenizer import Tokenizer


class Writer:
    """Generates text with a language model.

    Args:
        model: on `device`, in evaluation mode.
        tokenizer: decodes the tokens.
        device: where the model is.
        batch_size: continuations at a time; affects memory and speed only.
        stop_tokens: token ids that end a continuation.
        stop_texts: texts that end a continuation and are not part of it. If a `Decoding` has
            `stop_tokens`, those replace both.
        context: entered whenever the model runs, e.g. for bf16.
    """

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: Tokenizer,
        *,
        device: torch.device,
        batch_size: int = 16,
        stop_tokens: Collection[int] = (),
        stop_texts: Sequence[str] = (),
        context: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self.model, self.tokenizer, self.device = model, tokenizer, device
        self._batch_size = max(1, batch_size)
        self._ends = frozenset(stop_tokens), tuple(stop_texts)
        self._context = context

    def write(self, prompts: Sequence[Prompt], decoding: Decoding) -> list[Generation]:
        """Generate all continuations, ordered by prompt and then by sample."""
        pieces = (piece for piece in self.stream(prompts, decoding) if piece.done is not None)
        ordered = sorted(pieces, key=lambda piece: (piece.prompt, piece.sample))
        return [piece.done for piece in ordered if piece.done is not None]

    def stream(self, prompts: Sequence[Prompt], decoding: Decoding) -> Iterator[TextChunk]:
        """Generate continuations and yield their text as it comes; several prompts take turns."""
        if decoding.beams > 1:
            yield from self._search(prompts, decoding)
            return
        # Nobody waits for the first token of a prompt: several are read in one pass.
        batch = self.live_batch(prompt_tokens=None, join_together=max(1, self._batch_size // 4))
        for prompt in prompts:
            self.ask(batch, prompt, decoding)
        while batch:
            for _, piece in batch.step():
                yield piece

    def live_batch(self, **options: Any) -> LiveBatch:
        """A batch that requests join while it runs.

        Args:
            options: `prompt_tokens` and `join_together` of `LiveBatch`.
        """
        options |= {"device": self.device, "context": self._context}
        return LiveBatch(self.model, self.tokenizer, batch_size=self._batch_size, **options)

    def ask(self, batch: LiveBatch, prompt: Prompt, decoding: Decoding, **options: Any) -> None:
        """Let a batch continue a prompt, with the writer's own stop tokens and texts.

        Args:
            batch: from `live_batch`.
            prompt: what to continue.
            decoding: how.
            options: `tag` and `top_logprobs` of `LiveBatch.add`.
        """
        batch.add(prompt, decoding, *self._ends, **options)

    @torch.inference_mode()
    def _search(self, prompts: Sequence[Prompt], decoding: Decoding) -> Iterator[TextChunk]:
        """Run a beam search for each prompt, several at a time."""
        decoding = without_blanks(decoding, self.tokenizer, self.model.vocab_size)
        size = max(1, self._batch_size // decoding.beams)
        for start in range(0, len(prompts), size):
            requests = [
                WritingRequest.of(number, prompt, decoding, *self._ends)
                for number, prompt in enumerate(prompts[start : start + size], start)
            ]
            for request, search in zip(requests, self._searched(requests, decoding), strict=True):
                best = search.finished[: decoding.samples]
                for sample, hypothesis in enumerate(best):
                    mine, text = self._draft(request, sample), ""
                    for token, logprob in zip(hypothesis.tokens, hypothesis.logprobs, strict=True):
                        text += mine.take(token, logprob).text
                    mine.finish, mine.texts = hypothesis.stopped, [text]
                    new = {"tokens": hypothesis.tokens, "logprobs": hypothesis.logprobs}
                    piece = mine.piece("", hypothesis.score, **new)
                    yield replace(piece, text=text + piece.text)

    def _searched(self, requests: Sequence[WritingRequest], decoding: Decoding) -> list[BeamSearch]:
        """Run the searches of some requests in one batch."""
        reader = SequenceReader(self.model, self.device, self._context)
        reader.add([request.prompt.ids for request in requests], [1] * len(requests))
        searches = [
            BeamSearch(
                *(decoding.beams, decoding.length_penalty, decoding.early_stopping),
                *(request.stops, partial(_ending, self._draft(request, 0))),
                decoding.limit(request.prompt.ids),
            )
            for request in requests
        ]
        active = searches
        while active:
            # The live hypotheses of all searches are the rows of one batch: their best next tokens.
            own = reader.logits.log_softmax(-1)
            scores = penalize(own, reader.histories, decoding)
            places = [place for search in active for place in search.places]
            scores = bound_lengths(scores, places, decoding)
            if decoding.renormalize:
                scores = renormalized(scores)
            best = Candidates.of(scores, own, max(search.candidates for search in active))
            rows, tokens, start = list[int](), list[int](), 0
            # Each search extends its own rows, and keeps those it continues.
            for search in active:
                end = start + len(search.live)
                origins = search.advance(best.rows(start, end))
                if not search.done:
                    rows += [start + origin for origin in origins]
                    tokens += [hypothesis.tokens[-1] for hypothesis in search.live]
                start = end
            # Searches that are done leave the batch.
            active = [search for search in active if not search.done]
            if active:
                reader.keep(rows)
                reader.feed(tokens)
        return searches

    def _draft(self, request: WritingRequest, sample: int) -> Draft:
        return Draft(request, sample, self.tokenizer, self.model.opening)


def _ending(draft: Draft, tokens: Sequence[int]) -> str | None:
    """Why a continuation with these tokens ends at its last one; None: it does not."""
    if tokens[-1] in draft.request.stops:
        return "stop_token"
    stop = draft.request.decoding.stop
    if stop:
        text = continuation(draft.tokenizer, draft.before, tokens)
        if any(ending in text for ending in stop):
            return "stop_text"
    return "length" if len(tokens) == draft.limit else None
