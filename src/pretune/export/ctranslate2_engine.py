"""A folder for CTranslate2, opened by it: as a model of ours, on the same packed batches."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import override

from pretune.data.batch import PackedBatch, Selection
from pretune.decoding.continuations import Generation
from pretune.errors import CheckpointError
from pretune.export.onnx_runtime import rows_scored, unpadded
from pretune.export.packages import needed
from pretune.models.heads.vocabulary import Scores
from pretune.tasks.translation.rewriting import Rewriting, Rewritten
from pretune.text.terminal import in_line

#: The lists of tokens: of a translator one for both languages, or one for each.
VOCABULARY, SHARED = "vocabulary.json", "shared_vocabulary.json"
SOURCE, TARGET = "source_vocabulary.json", "target_vocabulary.json"


class CTranslate2Engine:
    """A folder, opened by CTranslate2 on the CPU.

    Args:
        folder: of the model.
        translates: whether it is a translator.

    Raises:
        CheckpointError: there is none, or it is damaged.
        RunError: ctranslate2 is not installed.
    """

    def __init__(self, folder: Path, *, translates: bool) -> None:
        ct2 = needed("ctranslate2")
        self.translates = translates
        open_model = ct2.Translator if translates else ct2.Generator
        try:
            self._model = open_model(
                str(folder), device="cpu", intra_threads=torch.get_num_threads()
            )
            shared = VOCABULARY if not translates else SHARED
            both = (shared, shared) if (folder / shared).is_file() else (SOURCE, TARGET)
            self.source, self.target = (
                json.loads((folder / name).read_text(encoding="utf-8")) for name in both
            )
        except (RuntimeError, ValueError, OSError) as error:
            reason = in_line(str(error).split("\n")[0])[:200]
            raise CheckpointError(
                f"{folder}: damaged, or no model of CTranslate2 ({reason})",
                "Export the model again.",
            ) from None
        self._numbers = {token: number for number, token in enumerate(self.target)}

    def logits(self, batch: PackedBatch) -> Tensor:
        """Give the logits `[T, vocab]` of the token after each, of a model that continues texts."""
        return unpadded(np.array(self._model.forward_batch(_ids(batch))), batch)

    def log_probs(self, sources: PackedBatch, targets: PackedBatch) -> Tensor:
        """Give the log-probabilities of each target's tokens and of its end, end to end.

        Args:
            sources: the texts.
            targets: their translations, each with its start token.
        """
        scored = self._model.score_batch(
            [self._words(ids, self.source) for ids in _ids(sources)],
            [self._words(ids[1:], self.target) for ids in _ids(targets)],
            max_input_length=0,
        )
        return torch.tensor([value for each in scored for value in each.log_probs])

    def write(
        self,
        texts: Sequence[Sequence[int]],
        longest: int,
        *,
        beams: int = 1,
        length_penalty: float = 0.0,
        never: Sequence[int] = (),
    ) -> list[tuple[list[int], float]]:
        """Continue texts, or translate them, by the most probable tokens.

        Args:
            texts: token ids.
            longest: most tokens of what is written, with its end.
            beams: of the search.
            length_penalty: the search compares log-probability / tokens**length_penalty.
            never: tokens that are not written.

        Returns:
            for each text the tokens, with the end where it was reached, and their score.
        """
        words = [self._words(ids, self.source) for ids in texts]
        how: dict[str, Any] = {
            "beam_size": beams,
            "length_penalty": length_penalty,
            "suppress_sequences": [[self.target[number]] for number in never] or None,
            "return_scores": True,
            "return_end_token": True,
        }
        if not self.translates:
            return self._continued(words, longest, how)
        results = self._model.translate_batch(
            words,
            max_decoding_length=longest,
            min_decoding_length=0,
            max_input_length=0,
            **how,
        )
        return [
            ([self._numbers[word] for word in own.hypotheses[0]], own.scores[0]) for own in results
        ]

    def _continued(
        self, words: list[list[str]], longest: int, how: dict[str, Any]
    ) -> list[tuple[list[int], float]]:
        """Continue prompts, those of one length at a time.

        Of prompts that are longer than others beside them, CTranslate2 gives the rest as written.
        """
        written: dict[int, tuple[list[int], float]] = {}
        for length in {len(prompt) for prompt in words}:
            numbers = [i for i, prompt in enumerate(words) if len(prompt) == length]
            results = self._model.generate_batch(
                [words[i] for i in numbers],
                max_length=longest,
                include_prompt_in_result=False,
                **how,
            )
            written |= {
                i: (list(own.sequences_ids[0]), own.scores[0])
                for i, own in zip(numbers, results, strict=True)
            }
        return [written[i] for i in range(len(words))]

    def _words(self, ids: Sequence[int], vocabulary: Sequence[str]) -> list[str]:
        return [vocabulary[number] for number in ids]


def _ids(batch: PackedBatch) -> list[list[int]]:
    return [part.tolist() for part in torch.split(batch.tokens.cpu(), list(batch.layout.lengths))]


class EngineModel(nn.Module):
    """A language model or a translator that CTranslate2 computes, for tasks to ask."""

    def __init__(self, engine: CTranslate2Engine) -> None:
        super().__init__()
        self.engine = engine

    @override
    def forward(
        self,
        batch: PackedBatch,
        *,
        select: Selection | None = None,
        labels: Tensor | None = None,
        **scoring: Any,
    ) -> Any:
        """Give what the model's own head gives; of a translator the plain cross-entropy.

        CTranslate2 tells only how probable the tokens of a translation are, not which is the most
        probable: `right` is 0.
        """
        if not self.engine.translates:
            return rows_scored(self.engine.logits(batch), select, labels, **scoring)
        nats = -self.engine.log_probs(*batch.pairs)
        total = nats.sum()
        return Scores(total, len(nats), total, torch.zeros(()), 0, nats)


def engine_task(task: Rewriting[Any, Any]) -> Rewriting[Any, Any]:
    """Copy a task that knows its tokenizer and its model; CTranslate2's search writes its texts."""
    kind = type(f"Engine{type(task).__name__}", (_EngineWrites, type(task)), {})
    own: Rewriting[Any, Any] = kind(task.options)
    vars(own).update(vars(task))
    return own


class _EngineWrites(Rewriting[Any, Any]):
    """What is of CTranslate2 in a task that writes texts."""

    @override
    def write(self, model: nn.Module, outputs: Rewritten, batch: PackedBatch) -> Rewritten:
        """Let CTranslate2 write the text for each source."""
        assert isinstance(model, EngineModel)  # noqa: S101 - made for it
        assert self._tokenizer is not None  # noqa: S101 - bound
        texts = _ids(batch if batch.choices is None else batch.pairs[0])
        decoding = self.decoding
        # Sources with the same limit go together.
        groups: dict[int, list[int]] = {}
        for number, ids in enumerate(texts):
            groups.setdefault(decoding.limit(ids), []).append(number)
        written: dict[int, Generation] = {}
        for limit, numbers in groups.items():
            answers = model.engine.write(
                [texts[number] for number in numbers],
                limit,
                beams=decoding.beams,
                length_penalty=decoding.length_penalty,
                never=self.never,
            )
            for number, (ids, score) in zip(numbers, answers, strict=True):
                text = self._tokenizer.written.decode(ids)
                written[number] = Generation((), 0, text, "stop_token", tuple(ids), (), score)
        return replace(outputs, written=[[written[number]] for number in range(len(texts))])
