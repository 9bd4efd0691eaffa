"""In-context learning: asking a language model with examples in its prompt.

Brown et al. 2020, "Language Models are Few-Shot Learners", section 2.4. The answer is chosen by the
likelihood of each possible answer after the prompt, or read from the text that the model writes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pretune.bundle.bundle import Bundle
from pretune.decoding.decoding import Decoding
from pretune.errors import DataError, PretuneError, did_you_mean
from pretune.evaluation.few_shot.result import Guess
from pretune.evaluation.few_shot.template import Template
from pretune.inference.generate import TextGenerator
from pretune.inference.likelihood import LikelihoodScorer, Pair
from pretune.tasks.dialogue.layouts import TemplateLayout
from pretune.tokenizers.chat_template import Message

Floats = NDArray[np.float64]

#: How an answer is chosen; see docs/prompting.md.
SCORES = ("likelihood", "mean", "per_character", "per_byte", "calibrated", "pmi", "generate")
#: Tokens to generate beyond the length of the longest answer.
MARGIN = 4


@dataclass(frozen=True)
class FewShotOptions:
    """How to ask.

    Raises:
        PretuneError: a value makes no sense.
    """

    shots: Sequence[int] = (0, 1, 5)  # examples before a question; each number is measured
    seeds: Sequence[int] = (0, 1, 2, 3, 4)  # of the draws of examples; each is measured
    template: str | None = None  # None: a line for each column, and the answer
    label: str = "label"
    # The text for each label in a prompt, or only the labels; None: the labels that occur.
    answers: Mapping[str, str] | Sequence[str] | None = None
    score: str = "likelihood"  # one of `SCORES`
    balanced: bool = True  # draw as many examples of each label as possible; False: at random
    separator: str = "\n\n"
    # Lay out questions and answers as messages and replies, by the model's chat template.
    chat: bool = False
    # Texts by which `calibrated` measures the bias of a model (Zhao et al. 2021, section 5).
    content_free: Sequence[str] = ("N/A", "[MASK]", "")
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.score not in SCORES:
            raise PretuneError(f"unknown score '{self.score}'", did_you_mean(self.score, SCORES))
        for name in ("shots", "seeds"):
            values = list(getattr(self, name))
            if not values or not all(isinstance(n, int) for n in values):
                raise PretuneError(f"{name}: expected whole numbers, not {values}")
            if min(values) < 0 or len(set(values)) < len(values):
                raise PretuneError(f"{name}: {values} has a negative or a repeated number")
        if self.limit is not None and self.limit < 1:
            raise PretuneError(f"limit must be 1 or more, not {self.limit}")
        if not self.content_free:
            raise PretuneError("content_free: give at least one text")


@dataclass(frozen=True)
class Question:
    """One row of the data."""

    values: dict[str, str]  # fill the template
    label: int
    where: str


@dataclass
class _Prompt:
    """A question in the form in which the model reads it."""

    question: Question
    shots: int
    pairs: list[Pair]  # with each possible answer


@dataclass
class FewShot:
    """A model with a template and the possible answers."""

    bundle: Bundle
    scorer: LikelihoodScorer
    template: Template
    answers: list[str]
    options: FewShotOptions
    device: str = "auto"
    layout: TemplateLayout | None = None  # of messages, if that is how to ask
    _premises: Floats | None = field(default=None, repr=False)

    def ask(
        self,
        questions: Sequence[Question],
        shots: Sequence[Question],
        progress: Callable[[int], None] | None = None,
    ) -> list[Guess]:
        """Answer questions, each after the same examples.

        Raises a DataError if a question is too long for the model even without examples.
        """
        chosen: dict[int, Guess] = {}
        groups: dict[int, list[int]] = {}
        prompts = [self._prompt(question, shots) for question in questions]
        for i, prompt in enumerate(prompts):
            groups.setdefault(prompt.shots, []).append(i)
        # Prompts with the same number of examples share their beginning.
        for count, which in groups.items():
            shown = shots[len(shots) - count :]
            begun = len(chosen)

            def done(pairs: int, begun: int = begun) -> None:
                if progress is not None:
                    progress(begun + pairs // len(self.answers))

            choose = self._written if self.options.score == "generate" else self._scored
            guesses = choose([prompts[i] for i in which], shown, done)
            chosen.update(zip(which, guesses, strict=True))
        return [chosen[i] for i in range(len(questions))]

    def text(self, values: Mapping[str, str], shots: Sequence[Question]) -> str:
        """Return a prompt: the examples, and the question up to the answer."""
        parts = [self.template.example(s.values, self.answers[s.label]) for s in shots]
        return self.options.separator.join([*parts, self.template.question(values)])

    def messages(self, question: str, shots: Sequence[Question]) -> list[Message]:
        """Return a prompt as a conversation: a message and a reply for each example."""
        talk: list[Message] = []
        for shot in shots:
            asked = self.template.question(shot.values)
            whole = self.template.example(shot.values, self.answers[shot.label])
            talk.append({"role": "user", "content": asked.rstrip()})
            talk.append({"role": "assistant", "content": whole[len(asked) :].strip()})
        return [*talk, {"role": "user", "content": question.rstrip()}]

    def _pairs(self, values: Mapping[str, str], shots: Sequence[Question]) -> list[Pair]:
        if self.layout is not None:
            return self._replies(self.template.question(values), shots)
        text = self.text(values, shots)
        return [self.scorer.pair(text, answer) for answer in self.answers]

    def _replies(self, question: str, shots: Sequence[Question]) -> list[Pair]:
        """Each possible answer as a reply, which the layout tokenizes by itself."""
        assert self.layout is not None  # noqa: S101 - the callers asked
        context = tuple(self.layout.prompt(self.messages(question, shots)))
        answers = [answer.strip() for answer in self.answers]
        encoded = self.layout.tokenizer.encode_bare(answers, offsets=False)
        return [Pair(context, tuple(each.ids)) for each in encoded]

    def _prompt(self, question: Question, shots: Sequence[Question]) -> _Prompt:
        """Put as many of the last examples before a question as the model has room for."""
        limit = self.scorer.model.context_length
        for dropped in range(len(shots) + 1):
            pairs = self._pairs(question.values, shots[dropped:])
            longest = max(pair.length for pair in pairs)
            longest += MARGIN if self.options.score == "generate" else 0
            if limit is None or longest <= limit:
                return _Prompt(question, len(shots) - dropped, pairs)
        raise DataError(
            f"{question.where}: {longest} tokens as a question, but the model reads {limit}",
            "Shorten that text or the template, or take the row out.",
        )

    def _scored(
        self, prompts: Sequence[_Prompt], shots: Sequence[Question], progress: Callable[[int], None]
    ) -> list[Guess]:
        """Choose by the likelihood of each answer, normalised as `options.score` says."""
        pairs = [pair for prompt in prompts for pair in prompt.pairs]
        scores = self._likelihoods(pairs, progress)
        kind = self.options.score
        if kind == "mean":
            tokens = [len(pair.continuation) for pair in pairs]
            scores = scores / np.array(tokens).reshape(scores.shape)
        elif kind in ("per_character", "per_byte"):
            sizes = [len(a if kind == "per_character" else a.encode()) for a in self.answers]
            scores = scores / np.array(sizes)
        elif kind == "calibrated":
            scores = _normalized(scores) - self._bias(shots)
        elif kind == "pmi":
            scores = scores - self._unconditional()
        best = scores.argmax(1)
        named = [dict(zip(self.answers, row, strict=True)) for row in scores.tolist()]
        return [
            Guess(p.question.where, self.answers[p.question.label], self.answers[i], p.shots, each)
            for p, i, each in zip(prompts, best, named, strict=True)
        ]

    def _likelihoods(
        self, pairs: Sequence[Pair], progress: Callable[[int], None] | None = None
    ) -> Floats:
        """Return `[N, answers]` log-likelihoods of pairs that are grouped by question."""
        scored = self.scorer.score(pairs, progress=progress)
        return np.array([likelihood.total for likelihood in scored]).reshape(-1, len(self.answers))

    def _bias(self, shots: Sequence[Question]) -> Floats:
        """Return `[answers]` log-probabilities of the answers to content-free inputs.

        Zhao et al. 2021, section 5: the mean over such inputs, W = diag(p)^-1, b = 0.
        """
        pairs = []
        for text in self.options.content_free:
            pairs += self._pairs(dict.fromkeys(self.template.columns, text), shots)
        limit = self.scorer.model.context_length
        if limit is not None and max(pair.length for pair in pairs) > limit:
            raise PretuneError(
                f"no room in the model's {limit} tokens for the examples and a content-free input",
                "Take fewer --shots, or shorter content_free texts.",
            )
        chances = np.exp(_normalized(self._likelihoods(pairs))).mean(0)
        return np.asarray(np.log(chances))

    def _unconditional(self) -> Floats:
        """Return `[answers]` log-likelihoods after the end of the template alone.

        This is the domain premise of Holtzman et al. 2021, equation 2.
        """
        if self._premises is None:
            premise = self.template.premise.lstrip()
            if self.layout is not None:
                pairs = self._replies(premise, ())
            else:
                pairs = [self.scorer.pair(premise, answer) for answer in self.answers]
            self._premises = self._likelihoods(pairs)[0]
        return self._premises

    def _written(
        self, prompts: Sequence[_Prompt], shots: Sequence[Question], progress: Callable[[int], None]
    ) -> list[Guess]:
        """Choose the answer that the text written by the model begins with."""
        writer = TextGenerator.of(self.bundle, template=None, device=self.device)
        longest = max(len(pair.continuation) for prompt in prompts for pair in prompt.pairs)
        decoding = Decoding(temperature=0, max_new_tokens=longest + MARGIN)
        if self.layout is not None:
            asked = [prompt.pairs[0].context for prompt in prompts]
        else:
            whole = [self.text(p.question.values, shots).rstrip() for p in prompts]
            asked = [self.scorer.encode(text) for text in whole]
        texts: dict[int, str] = {}
        for piece in writer.stream(asked, decoding):
            if piece.done is not None:
                texts[piece.prompt] = piece.done.text
                progress(len(texts) * len(self.answers))
        guesses = []
        for i, prompt in enumerate(prompts):
            answer = find_answer(texts[i], self.answers)
            truth = self.answers[prompt.question.label]
            guesses.append(Guess(prompt.question.where, truth, answer, prompt.shots, text=texts[i]))
        return guesses


def find_answer(text: str, answers: Sequence[str]) -> str | None:
    """Return the answer that a text begins with, ignoring case; of several the longest."""
    start = text.strip().casefold()
    for answer in sorted(answers, key=len, reverse=True):
        wanted = answer.strip().casefold()
        rest = start.removeprefix(wanted)
        begins = rest != start
        # The answer must end with a word, except in scripts that have no spaces.
        if begins and not (wanted[-1:].isascii() and rest[:1].isalnum()):
            return answer
    return None


def _normalized(scores: Floats) -> Floats:
    """Turn log-likelihoods into log-probabilities among the answers."""
    return np.asarray(scores - np.logaddexp.reduce(scores, axis=1, keepdims=True))
