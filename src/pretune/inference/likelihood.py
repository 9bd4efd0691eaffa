"""How probable a language model finds given continuations of given texts.

What contexts have in common, such as the examples before each question, is read once; what follows
is read after it, many sequences in one packed pass, and the answers to one question share its
reading too.
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
from pretune.errors import DataError
from pretune.inference.prompts import Prompted
from pretune.inference.runtime import precision_context
from pretune.models.heads.vocabulary import CHUNK_BYTES
from pretune.models.language_model import LanguageModel
from pretune.tokenizers.tokenizer import Tokenizer

Ids = tuple[int, ...]


@dataclass(frozen=True)
class Likelihood:
    """Of one continuation.

    Attributes:
        logprobs: natural logarithm of the probability of each of its tokens, after all before it.
        greedy: whether each of them is the most probable one.
    """

    logprobs: tuple[float, ...]
    greedy: bool

    @property
    def total(self) -> float:
        """Of the whole continuation: the sum."""
        return sum(self.logprobs)


@dataclass(frozen=True)
class Pair:
    """A continuation and what it follows, as tokens; neither is empty."""

    context: Ids
    continuation: Ids

    @property
    def length(self) -> int:
        """Tokens the model reads: all but the last one."""
        return len(self.context) + len(self.continuation) - 1


class Scorer(Prompted):
    """A language model that is asked for probabilities.

    Args:
        model: a `LanguageModel`.
        tokenizer: of the model.
        batch_tokens: tokens whose state is held at a time, those read before included; changes
            memory and speed only.
        share: whether to read once what all contexts begin with; changes speed only.
        options: as `Prompted`'s.

    Raises:
        RunError: there is no such device.
    """

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: Tokenizer,
        *,
        batch_tokens: int = 8192,
        share: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(model, tokenizer, **options)
        self._batch_tokens = batch_tokens
        self._share = share

    def encode(self, text: str) -> Ids:
        """The tokens of a text that goes on; of an empty one, what stands for a beginning.

        Raises:
            DataError: not valid Unicode, or empty and the model has no such token.
        """
        return tuple(self.prompt(text))

    def pair(self, context: str, continuation: str) -> Pair:
        """A continuation's tokens: those that it adds to the context's, both encoded as one text.

        White space at the end of the context becomes the beginning of the continuation, as most
        vocabularies have the space in the word after it; so does lm-evaluation-harness. Where the
        two make a token together, the continuation begins with that token.

        Raises:
            DataError: the continuation adds no token, or as `encode`.
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
        """How probable the continuations are, in their order.

        Args:
            pairs: none longer than the model's context.
            progress: called with the number of pairs done so far.

        Raises:
            ValueError: a pair is longer than the model's context.
        """
        most = self.model.context_length
        if most is not None and any(pair.length > most for pair in pairs):
            raise ValueError(f"a pair has more than {most} tokens")
        groups: dict[Ids, list[int]] = {}
        for i, pair in enumerate(pairs):
            groups.setdefault(pair.context, []).append(i)
        contexts = list(groups)
        shared = _shared(contexts) if self._share else 0
        prefix = self._start([contexts[0][:shared]])[1] if shared else None
        found: dict[int, Likelihood] = {}
        weights = [_weight(context, [pairs[i] for i in groups[context]]) for context in contexts]
        for which in batches_by_length(np.array(weights), self._batch_tokens):
            batch = [contexts[i] for i in which]
            numbers = [i for context in batch for i in groups[context]]
            rows = [row for row, context in enumerate(batch) for _ in groups[context]]
            rests = [context[shared:] for context in batch]
            answers = [pairs[i].continuation for i in numbers]
            scored = self._batch(rests, rows, answers, prefix)
            found.update(zip(numbers, scored, strict=True))
            if progress is not None:
                progress(len(found))
        return [found[i] for i in range(len(pairs))]

    def _batch(
        self, contexts: list[Ids], rows: list[int], answers: list[Ids], prefix: Any
    ) -> list[Likelihood]:
        """The likelihood of each answer, after the context of its row."""
        if prefix is None:
            logits, state = self._start(contexts)
        else:
            state = copy.deepcopy(prefix)
            state.select([0] * len(contexts))
            logits = self._follow(contexts, state)
        first = _logprobs(logits, rows, [answer[0] for answer in answers])
        found = [Likelihood((logprob,), best) for logprob, best in first]
        longer = [i for i, answer in enumerate(answers) if len(answer) > 1]
        parts = list(self._parts(longer, answers))
        for part in parts:
            # The last part may have the state itself.
            own = state if part is parts[-1] else copy.deepcopy(state)
            own.select([rows[i] for i in part])
            scored = self._rest([answers[i] for i in part], own)
            for i in part:
                more = [next(scored) for _ in answers[i][1:]]
                logprobs = (*found[i].logprobs, *(logprob for logprob, _ in more))
                found[i] = Likelihood(logprobs, found[i].greedy and all(best for _, best in more))
        return found

    def _rest(self, answers: list[Ids], state: Any) -> Iterator[tuple[float, bool]]:
        """For each token of some answers but their first: its log-probability, whether the best."""
        # An answer that is a part by itself may be a whole book.
        size = self._most_rows if len(answers) == 1 else max(map(len, answers))
        for start in range(0, max(map(len, answers)) - 1, size):
            pieces = [answer[start : start + size + 1] for answer in answers]
            logits = self._follow([piece[:-1] for piece in pieces], state, every=True)
            targets = [token for piece in pieces for token in piece[1:]]
            yield from _logprobs(logits, range(len(targets)), targets)

    @property
    def _most_rows(self) -> int:
        """How many rows of logits may exist at a time."""
        return max(1, CHUNK_BYTES // (4 * self.model.vocab_size))

    def _parts(self, which: list[int], answers: list[Ids]) -> Iterator[list[int]]:
        """Answers in parts of which all logits may exist at a time."""
        most = self._most_rows
        part, size = list[int](), 0
        for i in which:
            if part and size + len(answers[i]) > most:
                yield part
                part, size = [], 0
            part.append(i)
            size += len(answers[i])
        if part:
            yield part

    def _start(self, prompts: Sequence[Ids]) -> tuple[Tensor, Any]:
        with precision_context(self.device, self._precision):
            return self.model.start(prompts)

    def _follow(self, more: Sequence[Ids], state: Any, *, every: bool = False) -> Tensor:
        with precision_context(self.device, self._precision):
            return self.model.follow(more, state, every=every)


def _shared(contexts: Sequence[Ids]) -> int:
    """How many tokens all begin with; each keeps at least one of its own. 0 for a single one."""
    if len(contexts) < 2:
        return 0
    # What the first and the last in alphabetical order share, all share.
    low, high = min(contexts), max(contexts)
    most = min(map(len, contexts)) - 1
    return next((i for i in range(most) if low[i] != high[i]), most)


def _weight(context: Ids, pairs: Sequence[Pair]) -> int:
    """Tokens of the states that scoring the continuations of a context takes."""
    longer = [pair.length for pair in pairs if len(pair.continuation) > 1]
    return max(len(context), sum(longer))


def _logprobs(
    logits: Tensor, rows: Sequence[int], tokens: Sequence[int]
) -> list[tuple[float, bool]]:
    """Of tokens in some rows of logits: the log-probability, and whether it is the best."""
    logits = logits.float()
    where = torch.tensor(list(rows), device=logits.device)
    which = torch.tensor(list(tokens), device=logits.device)
    found = logits[where, which] - logits.logsumexp(-1)[where]
    best = logits.argmax(-1)[where] == which
    return list(zip(found.tolist(), best.tolist(), strict=True))
