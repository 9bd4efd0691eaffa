"""The likelihood of continuations under a language model.

The beginning that all contexts share, such as the examples before each question, is read once. The
rest of the contexts is read in packed batches, each context once for all its continuations.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pretune.data.batch_order import batches_by_length
from pretune.decoding.judgement import Likelihood
from pretune.errors import DataError
from pretune.inference.prompts import Prompted
from pretune.inference.runtime import writing_context
from pretune.models.heads.vocabulary import CHUNK_BYTES
from pretune.models.language_model import LanguageModel
from pretune.tokenizers.tokenizer import Tokenizer

Ids = tuple[int, ...]


@dataclass(frozen=True)
class Pair:
    """A continuation and the context before it, as tokens; neither is empty."""

    context: Ids
    continuation: Ids

    @property
    def length(self) -> int:
        """The number of tokens that the model reads: all but the last."""
        return len(self.context) + len(self.continuation) - 1


class LikelihoodScorer(Prompted):
    """A language model that is asked for probabilities."""

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: Tokenizer,
        *,
        # Held at a time, contexts included; changes memory and speed only.
        batch_tokens: int = 8192,
        share: bool = True,  # read the common beginning of all contexts once; changes speed only
        **options: Any,  # of `Prompted`
    ) -> None:
        super().__init__(model, tokenizer, **options)
        self._batch_tokens = batch_tokens
        self._share = share

    def encode(self, text: str) -> Ids:
        """Return the tokens of an unfinished text; for an empty text, the start token."""
        return tuple(self.prompt(text))

    def pair(self, context: str, continuation: str) -> Pair:
        """Tokenize a context and its continuation as one text, and split the tokens.

        As in lm-evaluation-harness, white space at the end of the context goes to the continuation,
        since most vocabularies join a space to the word after it. A token that spans both texts
        belongs to the continuation.

        Raises:
            DataError: the continuation adds no token, or `encode` fails.
        """
        kept = context.rstrip()
        before = self.encode(kept)
        whole = self.encode(context + continuation)
        if not kept and whole[: len(before)] != before:
            whole = before + whole  # the token that stands for a beginning
        if len(whole) <= len(before):
            pairs = zip(whole, before, strict=False)
            same = next((i for i, (a, b) in enumerate(pairs) if a != b), len(whole))
            before = before[:same]
        if not before or len(whole) <= len(before):
            raise DataError(
                f"{continuation!r} adds no token to the text before it",
                "Write something between the two, or take another answer.",
            )
        return Pair(before, whole[len(before) :])

    @torch.inference_mode()
    def score(
        self, pairs: Sequence[Pair], *, progress: Callable[[int], None] | None = None
    ) -> list[Likelihood]:
        """Compute the likelihoods of continuations, in their order.

        Raises:
            ValueError: a pair is longer than the model's context.
        """
        limit = self.model.context_length
        if limit is not None and any(pair.length > limit for pair in pairs):
            raise ValueError(f"a pair has more than {limit} tokens")
        # Each context is read once, whatever the number of its continuations.
        groups: dict[Ids, list[int]] = {}
        for i, pair in enumerate(pairs):
            groups.setdefault(pair.context, []).append(i)
        contexts = list(groups)
        # What all contexts begin with is read before everything else.
        shared = _shared(contexts) if self._share else 0
        prefix = self._start([contexts[0][:shared]])[1] if shared else None
        # The rest of the contexts goes in batches of about the same number of tokens.
        likelihoods: dict[int, Likelihood] = {}
        weights = [_weight(context, [pairs[i] for i in groups[context]]) for context in contexts]
        for which in batches_by_length(np.array(weights), self._batch_tokens):
            batch = [contexts[i] for i in which]
            numbers = [i for context in batch for i in groups[context]]
            rows = [row for row, context in enumerate(batch) for _ in groups[context]]
            rests = [context[shared:] for context in batch]
            answers = [pairs[i].continuation for i in numbers]
            scored = self._batch(rests, rows, answers, prefix)
            likelihoods.update(zip(numbers, scored, strict=True))
            if progress is not None:
                progress(len(likelihoods))
        return [likelihoods[i] for i in range(len(pairs))]

    def _batch(
        self, contexts: list[Ids], rows: list[int], answers: list[Ids], prefix: Any
    ) -> list[Likelihood]:
        """Return the likelihood of each answer after the context of its row."""
        # The contexts, after the beginning that they share: their last logits score first tokens.
        if prefix is None:
            logits, state = self._start(contexts)
        else:
            state = copy.deepcopy(prefix)
            state.select([0] * len(contexts))
            logits = self._follow(contexts, state)
        first = _logprobs(logits, rows, [answer[0] for answer in answers])
        likelihoods = [Likelihood((logprob,), best) for logprob, best in first]
        # Longer answers are read after copies of the contexts' states.
        longer = [i for i, answer in enumerate(answers) if len(answer) > 1]
        parts = list(self._parts(longer, answers))
        for part in parts:
            # The last part may have the state itself.
            own = state if part is parts[-1] else copy.deepcopy(state)
            own.select([rows[i] for i in part])
            scored = self._rest([answers[i] for i in part], own)
            for i in part:
                more = [next(scored) for _ in answers[i][1:]]
                before = likelihoods[i]
                logprobs = (*before.logprobs, *(logprob for logprob, _ in more))
                greedy = before.greedy and all(best for _, best in more)
                likelihoods[i] = Likelihood(logprobs, greedy)
        return likelihoods

    def _rest(self, answers: list[Ids], state: Any) -> Iterator[tuple[float, bool]]:
        """Yield for each token after the first its log-probability, and whether it is the best."""
        # A single answer may be a whole book: its logits are computed piece by piece.
        size = self._max_rows if len(answers) == 1 else max(map(len, answers))
        for start in range(0, max(map(len, answers)) - 1, size):
            pieces = [answer[start : start + size + 1] for answer in answers]
            logits = self._follow([piece[:-1] for piece in pieces], state, every=True)
            targets = [token for piece in pieces for token in piece[1:]]
            yield from _logprobs(logits, range(len(targets)), targets)

    @property
    def _max_rows(self) -> int:
        """The maximum number of rows of logits to hold at a time."""
        return max(1, CHUNK_BYTES // (4 * self.model.vocab_size))

    def _parts(self, which: list[int], answers: list[Ids]) -> Iterator[list[int]]:
        """Split answers into parts whose logits fit in memory together."""
        part, size = list[int](), 0
        for i in which:
            if part and size + len(answers[i]) > self._max_rows:
                yield part
                part, size = [], 0
            part.append(i)
            size += len(answers[i])
        if part:
            yield part

    def _start(self, prompts: Sequence[Ids]) -> tuple[Tensor, Any]:
        with writing_context(self.device, self._precision):
            return self.model.start(prompts)

    def _follow(self, more: Sequence[Ids], state: Any, *, every: bool = False) -> Tensor:
        with writing_context(self.device, self._precision):
            return self.model.follow(more, state, every=every)


def _shared(contexts: Sequence[Ids]) -> int:
    """Return how many tokens all contexts have in common at the beginning.

    Each context keeps at least one token of its own; a single context shares nothing.
    """
    if len(contexts) < 2:
        return 0
    # What the first and the last in alphabetical order share, all share.
    low, high = min(contexts), max(contexts)
    limit = min(map(len, contexts)) - 1
    return next((i for i in range(limit) if low[i] != high[i]), limit)


def _weight(context: Ids, pairs: Sequence[Pair]) -> int:
    """Return the number of tokens whose state is held to score the continuations of a context."""
    longer = [pair.length for pair in pairs if len(pair.continuation) > 1]
    return max(len(context), sum(longer))


def _logprobs(
    logits: Tensor, rows: Sequence[int], tokens: Sequence[int]
) -> list[tuple[float, bool]]:
    """Return the log-probability of each token in its row of logits, and whether it is the best."""
    logits = logits.float()
    where = torch.tensor(list(rows), device=logits.device)
    which = torch.tensor(list(tokens), device=logits.device)
    logprobs = logits[where, which] - logits.logsumexp(-1)[where]
    best = logits.argmax(-1)[where] == which
    return list(zip(logprobs.tolist(), best.tolist(), strict=True))
