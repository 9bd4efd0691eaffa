"""Our language models in EleutherAI's lm-evaluation-harness (Gao et al. 2021).

    import lm_eval
    from pretune.evaluation.harness import HarnessModel
    lm_eval.simple_evaluate(HarnessModel("runs/novels"), tasks=["lambada_openai"])

    python -m pretune.evaluation.harness run --model pretune --model_args pretrained=runs/novels \
        --tasks lambada_openai

This needs the extra `harness`. Tokens and scores equal the harness's own `hf` model; prompts are
packed, and their common beginning is read once.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pretune.bundle.bundle import Bundle, load
from pretune.decoding.decoding import Decoding
from pretune.decoding.judgement import Likelihood
from pretune.errors import PretuneError
from pretune.inference.generate import TextGenerator
from pretune.inference.likelihood import Ids, LikelihoodScorer, Pair

try:
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
except ImportError as error:
    raise PretuneError(
        f"this needs lm-evaluation-harness ({error})",
        "Install it with: pip install 'pretune[harness]'",
    ) from None

#: Where a task does not say; the default of the harness's own models.
MAX_NEW_TOKENS = 256
#: The harness's names of options -> the names in `Decoding`.
_NAMES = {
    "max_gen_toks": "max_new_tokens",
    "max_tokens": "max_new_tokens",
    "max_completion_tokens": "max_new_tokens",
    "until": "stop",
    "num_beams": "beams",
    "no_repeat_ngram_size": "no_repeat_ngram",
}
#: Options that matter only for sampling.
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "typical_p")
_KNOWN = (
    *("max_new_tokens", "stop", "beams", "no_repeat_ngram", "repetition_penalty"),
    *("length_penalty", "early_stopping", *_SAMPLING),
)


@register_model("pretune")
class HarnessModel(LM):  # type: ignore[misc]  # LM is Any where the harness is not installed
    """One of our language models with the interface of the harness.

    Args:
        pretrained: a run, a folder in the Hugging Face layout, a Hub id, or a bundle from `load`.
        device: `auto`, `cpu`, `cuda`, ...
        precision: `auto`, `float32` or `bf16`.
        batch_tokens: tokens at a time for likelihoods; changes memory and speed only.
        batch_size: texts to generate at a time; `auto` is 16.
        max_batch_size: has no effect; the harness passes it.
        allow_pickle: also read `pytorch_model.bin`.

    Raises:
        PretuneError: there is no model, or it is not a language model.
    """

    def __init__(
        self,
        pretrained: str | Path | Bundle,
        *,
        device: str = "auto",
        precision: str = "auto",
        batch_tokens: int = 8192,
        batch_size: int | str = "auto",
        max_batch_size: int | None = None,
        allow_pickle: bool = False,
    ) -> None:
        super().__init__()
        bundle = pretrained
        if not isinstance(bundle, Bundle):
            bundle = load(bundle, allow_pickle=allow_pickle)
        how: dict[str, Any] = {"device": device or "auto", "precision": precision}
        self.scorer = LikelihoodScorer.of(bundle, batch_tokens=int(batch_tokens), **how)
        texts = int(batch_size) if str(batch_size).isdigit() else 16
        self._writer = TextGenerator.of(bundle, template=None, batch_size=texts, **how)
        self._name = bundle.report.source if bundle.report else type(bundle.model).__name__
        self._device = self.scorer.device

    @property
    def tokenizer_name(self) -> str:
        """The key of the harness's cache of requests."""
        return str(self._name)

    def loglikelihood(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Return for each request `(context, continuation)` the log-likelihood, and whether greedy.

        A context that is too long for the model loses its beginning, with a warning; a continuation
        that is too long raises a PretuneError.
        """
        pairs = [self.scorer.pair(*request.args) for request in requests]
        limit = self.scorer.model.context_length
        fitting = [pair if limit is None else _fitting(pair, limit) for pair in pairs]
        cut = sum(pair != kept for pair, kept in zip(pairs, fitting, strict=True))
        _warn_cut(cut, len(pairs), limit)
        scored = self._score(fitting, disable_tqdm)
        answers = [(likelihood.total, likelihood.greedy) for likelihood in scored]
        for request, answer in zip(requests, answers, strict=True):
            self.cache_hook.add_partial("loglikelihood", request.args, answer)
        return answers

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """Return the log-likelihood of each text, in windows if it is longer than the context."""
        limit = self.scorer.model.context_length
        texts = [list(_windows(self.scorer, request.args[0], limit)) for request in requests]
        scored = iter(self._score([pair for text in texts for pair in text], disable_tqdm))
        totals = [sum(next(scored).total for _ in text) for text in texts]
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Return the continuation of each request `(context, options)`, up to a stop text."""
        # Requests with the same options are generated together.
        groups: dict[str, list[int]] = {}
        for i, request in enumerate(requests):
            groups.setdefault(repr(request.args[1]), []).append(i)
        texts: dict[int, str] = {}
        with tqdm(total=len(requests), desc="generating", disable=disable_tqdm) as bar:
            for which in groups.values():
                decoding = decoding_of(requests[which[0]].args[1])
                prompts = self._prompts([requests[i].args[0] for i in which], decoding)
                for piece in self._writer.stream(prompts, decoding):
                    if piece.done is not None:
                        texts[which[piece.prompt]] = piece.done.text
                        bar.update()
        for i, request in enumerate(requests):
            self.cache_hook.add_partial("generate_until", request.args, texts[i])
        return [texts[i] for i in range(len(requests))]

    def _score(self, pairs: Sequence[Pair], disable_tqdm: bool) -> list[Likelihood]:
        with tqdm(total=len(pairs), desc="likelihoods", disable=disable_tqdm) as bar:
            return self.scorer.score(pairs, progress=lambda done: bar.update(done - bar.n))

    def _prompts(self, texts: Sequence[str], decoding: Decoding) -> list[Ids]:
        """Tokenize prompts, cut at the beginning so that there is room for the continuations."""
        prompts = [self.scorer.encode(text) for text in texts]
        limit = self.scorer.model.context_length
        if limit is None:
            return prompts
        room = limit - decoding.max_new_tokens
        if room < 1:
            raise PretuneError(
                f"{decoding.max_new_tokens} tokens to generate leave no room for a prompt in the "
                f"model's {limit}",
                "Set max_gen_toks in the task's generation_kwargs, or --gen_kwargs.",
            )
        _warn_cut(sum(len(prompt) > room for prompt in prompts), len(prompts), room)
        return [prompt[-room:] for prompt in prompts]


def decoding_of(options: Mapping[str, Any]) -> Decoding:
    """Read a task's `generation_kwargs`; without `do_sample` and a temperature, greedy.

    Raises a PretuneError for an option that is unknown here or makes no sense.
    """
    given = {_NAMES.get(name, name): value for name, value in options.items()}
    sample = given.pop("do_sample", None)
    unknown = [name for name in given if name not in _KNOWN]
    if unknown:
        raise PretuneError(
            f"generation_kwargs: {unknown[0]} has no counterpart here",
            f"Known: {', '.join((*_NAMES, *_KNOWN))}.",
        )
    stop = given.pop("stop", None) or []
    given["stop"] = [text for text in ([stop] if isinstance(stop, str) else stop) if text]
    drawing = {name: given.pop(name) for name in _SAMPLING if name in given}
    # As in the harness: a temperature without do_sample means sampling, neither means greedy.
    drawing.setdefault("temperature", 1.0 if sample else 0.0)
    if given.get("beams", 1) > 1 and not sample:
        drawing = {}
    elif sample is False or float(drawing["temperature"]) == 0:
        drawing = {"temperature": 0.0}
    return Decoding(**{"max_new_tokens": MAX_NEW_TOKENS, "top_p": 1.0, **drawing, **given})


def _fitting(pair: Pair, limit: int) -> Pair:
    """Cut the beginning of the context so that the pair fits the model."""
    room = limit + 1 - len(pair.continuation)
    if room < 1:
        raise PretuneError(
            f"a continuation of {len(pair.continuation)} tokens, but the model reads {limit}"
        )
    return Pair(pair.context[-room:], pair.continuation)


def _warn_cut(count: int, total: int, limit: int | None) -> None:
    if count:
        warnings.warn(
            f"{count:,} of {total:,} prompts have more than {limit} tokens; their beginning was "
            "left out",
            stacklevel=3,
        )


def _windows(scorer: LikelihoodScorer, text: str, limit: int | None) -> Iterator[Pair]:
    """Split a text into windows in which each token is scored once.

    The first token follows the start token. The last window is filled up with context.
    """
    if not text:
        return
    before, ids = scorer.encode(""), scorer.encode(text)
    whole = ids if ids[: len(before)] == before else before + ids
    count = len(whole) - 1
    size = count if limit is None else limit
    for start in range(0, count, size):
        end = min(start + size, count)
        first = max(0, min(start, end - size))
        yield Pair(whole[first : start + 1], whole[start + 1 : end + 1])


def main() -> None:
    """Run the harness's own command line, with the model `pretune` registered."""
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()


if __name__ == "__main__":
    main()
