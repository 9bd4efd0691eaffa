"""The payloads of Hugging Face: `{"inputs": ..., "parameters": {...}}` at `/models/NAME`.

As the pipelines of transformers, the Inference API and Text Generation Inference (TGI) have them:
`huggingface_hub.InferenceClient(model="http://HOST/models/NAME")` works unmodified. The path `/` is
that of the first model. What a model is asked follows from its task;
`/models/NAME/pipeline/TASK` and `candidate_labels` (zero-shot) ask a model for something else that
it can do.

https://huggingface.co/docs/inference-providers/tasks.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pretune.decoding.decoding import Decoding
from pretune.errors import PretuneError
from pretune.serving.bodies import Body, Many, checked, served_for
from pretune.serving.embeddings_api import similarities
from pretune.serving.event_stream import INTERNAL, Begun, EventStream, begun, event, together
from pretune.serving.jobs import Piece, Served
from pretune.serving.json_body import json_bytes, json_value
from pretune.serving.options import ServeOptions
from pretune.serving.refusal import Refusal, invalid, over_limit
from pretune.serving.request_limits import check_inputs, check_repeated, check_texts
from pretune.serving.service import Service

PATHS = ("/models/",)

#: A gap in a text.
MASK = "[MASK]"
#: How transformers' zero-shot pipeline puts a label into a sentence.
HYPOTHESIS = "This example is {}."
#: How an unknown parameter is refused.
UNKNOWN = "Unknown parameter: '{}' is none of this task's."
#: Tokens of a continuation where a request does not say (TGI's default).
MAX_NEW_TOKENS = 100

#: The task of a model -> the name of its pipeline.
PIPELINES: Mapping[str | None, str] = {
    "classify": "text-classification",
    "multilabel": "text-classification",
    "regress": "text-classification",
    "tag": "token-classification",
    "answer": "question-answering",
    "mask_lm": "fill-mask",
    "translate": "translation",
    "summarize": "summarization",
}


#: Pipelines that models of several tasks can be asked as.
_OF_ANY_TASK = ("zero-shot-classification", "other")


class HubRequest(Body):
    """The body of `POST /models/NAME`."""

    inputs: Any = Field(description="A text, a list of texts, or what the task reads.")
    parameters: dict[str, Any] | None = None
    stream: bool | None = Field(None, description="text-generation: server-sent events.")
    options: dict[str, Any] | None = Field(None, description="Accepted, and without effect.")


class ClassificationParameters(Body):
    """The parameters of text-classification."""

    top_k: int | None = Field(None, ge=1)
    function_to_apply: Literal["sigmoid", "softmax", "none"] | None = None


class TagParameters(Body):
    """The parameters of token-classification."""

    aggregation_strategy: Literal["simple", "first"] | None = None
    ignore_labels: Many[str] | None = None

    expected: ClassVar[Mapping[str, str]] = {
        "aggregation_strategy": "'simple' or 'first': this server tags whole words by their first "
        "token, and gives entities"
    }
    refused: ClassVar[Mapping[str, tuple[Any, ...]]] = {"stride": ()}


class AnswerParameters(Body):
    """The parameters of question-answering."""

    top_k: int | None = Field(None, ge=1)
    handle_impossible_answer: bool | None = Field(
        None, description="Whether there may be no answer; default: as the model was trained."
    )
    align_to_words: bool | None = None

    refused: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "doc_stride": (),
        "max_answer_len": (),
        "max_question_len": (),
        "max_seq_len": (),
    }


class FillParameters(Body):
    """The parameters of fill-mask."""

    top_k: int = Field(5, ge=1)
    targets: Many[str] | None = None


class ZeroShotParameters(Body):
    """The parameters of zero-shot-classification."""

    candidate_labels: Many[str] = Field(min_length=1)
    hypothesis_template: str = HYPOTHESIS
    multi_label: Literal[False] | None = None

    expected: ClassVar[Mapping[str, str]] = {
        "multi_label": "false: a language model compares labels with each other"
    }


class EmbeddingParameters(Body):
    """The parameters of feature-extraction, which stand in the body itself."""

    inputs: str | Many[str]
    normalize: bool | None = None
    prompt_name: str | None = None
    truncate: bool | None = None
    dimensions: int | None = Field(None, ge=1)
    truncation_direction: Literal["right", "Right"] | None = None
    encoding_format: Literal["float"] | None = None

    expected: ClassVar[Mapping[str, str]] = {"inputs": "a text or a list of texts"}


class SentencePairs(Body):
    """The inputs of sentence-similarity."""

    source_sentence: str
    sentences: Many[str] = Field(min_length=1)


class TranslationParameters(Body):
    """The parameters of translation and of summarization."""

    truncation: Literal["do_not_truncate", "longest_first", "only_first"] | None = None
    clean_up_tokenization_spaces: bool | None = None

    refused: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "src_lang": (),
        "tgt_lang": (),
        "generate_parameters": ({},),
    }


class GenerationParameters(Body):
    """The parameters of text-generation, as TGI has them."""

    max_new_tokens: int | None = Field(None, ge=1)
    do_sample: bool | None = None
    temperature: float | None = Field(None, gt=0, le=1000)
    top_k: int | None = Field(None, ge=1)
    top_p: float | None = Field(None, gt=0, le=1)
    typical_p: float | None = Field(None, gt=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0, le=1000)
    seed: int | None = Field(None, ge=0, le=2**64 - 1)
    stop: Many[str] | None = None
    stop_sequences: Many[str] | None = None
    return_full_text: bool | None = None
    details: bool | None = None

    refused: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "best_of": (1,),
        "watermark": (False,),
        "grammar": (),
        "adapter_id": (),
        "frequency_penalty": (0,),
        "decoder_input_details": (False,),
        "top_n_tokens": (0,),
        "truncate": (),
    }

    @property
    def stops(self) -> list[str]:
        """The texts that end a continuation."""
        return [*(self.stop or ()), *(self.stop_sequences or ())]


def routes(service: Service, options: ServeOptions) -> list[Route]:
    """Return the routes of the protocol."""
    api = HubApi(service, options)

    async def ask(request: Request) -> Response:
        return await api.answer(request, request.path_params["model"], None)

    async def ask_for(request: Request) -> Response:
        own = request.path_params
        return await api.answer(request, own["model"], own["task"])

    async def ask_first(request: Request) -> Response:
        return await api.answer(request, None, None)

    async def describe(request: Request) -> Response:
        return _json(api.describe(request.path_params["model"]))

    return [
        Route("/", ask_first, methods=["POST"]),
        Route("/models/{model:path}/pipeline/{task}", ask_for, methods=["POST"]),
        Route("/models/{model:path}", ask, methods=["POST"]),
        Route("/models/{model:path}", describe, methods=["GET"]),
    ]


def pipeline_of(served: Served) -> str:
    """Return the name of the pipeline that a model is asked as."""
    if served.task in PIPELINES:
        return PIPELINES[served.task]
    if "generate" in served.abilities:
        return "text-generation"
    return "other" if "predict" in served.abilities else "feature-extraction"


class HubApi:
    """What pipelines do, by a service."""

    def __init__(self, service: Service, options: ServeOptions) -> None:
        self._service, self._options = service, options
        self._pipelines: dict[str, Callable[[Served, Any, Any], Awaitable[Any]]] = {
            "text-classification": self._classified,
            "token-classification": self._tagged,
            "question-answering": self._answered,
            "fill-mask": self._filled,
            "zero-shot-classification": self._zero_shot,
            "translation": self._translated,
            "summarization": self._summarized,
            "other": self._predicted,
        }

    async def answer(self, request: Request, named: str | None, task: str | None) -> Response:
        """Answer a payload.

        Args:
            request: with the payload.
            named: the model; None: the first.
            task: the pipeline; None: what the model was trained for.
        """
        value = await json_value(request)
        body = checked(HubRequest, value)
        served = self._service.model(named)
        request.state.model = served.name
        parameters = body.parameters or {}
        inputs = body.inputs
        if task is None:
            task = pipeline_of(served)
            if "candidate_labels" in parameters:
                task = "zero-shot-classification"
            elif isinstance(inputs, dict) and "source_sentence" in inputs:
                task = "sentence-similarity"
        if task == "text-generation":
            return await self._generated(served, body)
        if task == "sentence-similarity":
            pair = checked(SentencePairs, inputs, inside="inputs")
            texts = [pair.source_sentence, *pair.sentences]
            source, *others = check_texts(texts, self._options, "inputs")
            return _json(await similarities(self._service, request, served.name, source, others))
        if task == "feature-extraction":
            return _json(await self._embedded(served, {**parameters, **value}))
        run = self._pipelines.get(task)
        own = pipeline_of(served)
        if run is not None and task not in (own, *_OF_ANY_TASK):
            raise invalid(f"The model '{served.name}' is for {own}, not for {task}.", "model")
        if run is None:
            known = ", ".join([*self._pipelines, "text-generation", "feature-extraction"])
            raise Refusal(
                404, "unknown_task", f"There is no pipeline of this name; known: {known}."
            )
        return _json(await run(served, inputs, parameters))

    def describe(self, named: str) -> dict[str, Any]:
        """Describe a model, as the Hub does."""
        served = self._service.model(named)
        return {
            "id": served.name,
            "pipeline_tag": pipeline_of(served),
            "library_name": "pretune",
            "config": {"model_type": served.model_type, "labels": served.labels},
            "inference": "warm",
        }

    # Pipelines: inputs and parameters to an answer.

    async def _classified(self, served: Served, inputs: Any, given: Any) -> Any:
        """Return a list of labels with scores for each input."""
        parameters = checked(ClassificationParameters, given, unknown=UNKNOWN, inside="parameters")
        applied = {"classify": "softmax", "multilabel": "sigmoid", "regress": "none"}
        own = applied.get(served.task or "")
        if parameters.function_to_apply not in (None, own):
            raise invalid(
                f"'function_to_apply' can only be '{own}' for this model.",
                "parameters.function_to_apply",
            )
        rows = _columns(check_inputs(inputs, self._options), served)
        answers = await self._service.predict(served.name, rows)
        return [_labels(answer, parameters.top_k) for answer in answers]

    async def _tagged(self, served: Served, inputs: Any, given: Any) -> Any:
        """Return the entities of a text, or of each of several."""
        parameters = checked(TagParameters, given, unknown=UNKNOWN, inside="parameters")
        rows = _columns(check_texts(inputs, self._options, "inputs"), served)
        ignored = parameters.ignore_labels or []
        answers = await self._service.predict(served.name, rows)
        entities = [
            [
                {
                    "entity_group": entity["type"],
                    "score": entity["score"],
                    "word": entity["text"],
                    "start": entity["start"],
                    "end": entity["end"],
                }
                for entity in answer["entities"]
                if entity["type"] not in ignored
            ]
            for answer in answers
        ]
        return entities if isinstance(inputs, list) else entities[0]

    async def _answered(self, served: Served, inputs: Any, given: Any) -> Any:
        """Return the answer to a question, or the best of them."""
        parameters = checked(AnswerParameters, given, unknown=UNKNOWN, inside="parameters")
        rows = _columns(check_inputs(inputs, self._options), served)
        count = parameters.top_k or 1
        _check_top_k(count, self._options)
        # Two at least: the best span is told beside an answer that there is none.
        answers = await self._service.predict(served.name, rows, top_k=max(2, count))
        spans = [_spans(answer, parameters.handle_impossible_answer)[:count] for answer in answers]
        each = [own[0] if count == 1 else own for own in spans]
        return each if isinstance(inputs, list) else each[0]

    async def _filled(self, served: Served, inputs: Any, given: Any) -> Any:
        """Return what fits the gap of a text; of several gaps or texts, a list for each."""
        parameters = checked(FillParameters, given, unknown=UNKNOWN, inside="parameters")
        _check_top_k(parameters.top_k, self._options)
        texts = check_texts(inputs, self._options, "inputs")
        targets: list[str | int] | None = None
        if parameters.targets is not None:
            targets = [*check_texts(parameters.targets, self._options, "parameters.targets")]
        filled = await self._service.fill(
            served_for(self._service, served.name, "fill").name,
            texts,
            top_k=parameters.top_k,
            targets=targets,
        )
        each = [gaps[0] if len(gaps) == 1 else gaps for gaps in filled]
        return each if isinstance(inputs, list) else each[0]

    async def _zero_shot(self, served: Served, inputs: Any, given: Any) -> Any:
        """Return candidate labels with their probabilities, best first."""
        parameters = checked(ZeroShotParameters, given, unknown=UNKNOWN, inside="parameters")
        before, place, after = parameters.hypothesis_template.partition("{}")
        if not place:
            raise invalid(
                "'hypothesis_template' needs {} where a label has to stand.",
                "parameters.hypothesis_template",
            )
        texts = check_texts(inputs, self._options, "inputs")
        labels = check_texts(
            parameters.candidate_labels, self._options, "parameters.candidate_labels"
        )
        if len(texts) * len(labels) > self._options.max_inputs:
            raise over_limit(
                413,
                "max_inputs",
                f"Each text is read with each label; the limit is {self._options.max_inputs:,} "
                "such pairs (max_inputs).",
                "inputs",
            )
        check_repeated([*texts, before, after], len(labels), self._options, "inputs")
        score = self._mask_scores if "fill" in served.abilities else self._text_scores
        each = [
            _distribution(labels, await score(served, text, labels, before, after))
            for text in texts
        ]
        return each if isinstance(inputs, list) else each[0]

    async def _text_scores(
        self, served: Served, text: str, labels: Sequence[str], before: str, after: str
    ) -> list[float]:
        """How probable each label, and what follows it, is after the text (Brown et al. 2020)."""
        name = served_for(self._service, served.name, "likelihood").name
        pairs = [(f"{text}\n{before}", label + after) for label in labels]
        return [found.total for found in await self._service.likelihood(name, pairs)]

    async def _mask_scores(
        self, served: Served, text: str, labels: Sequence[str], before: str, after: str
    ) -> list[float]:
        """How well each label fills gaps after the text, one for each of its tokens (the mean)."""
        tokens = [
            [token.id for token in own]
            for own in await self._service.tokenize(served.name, [*labels], special=False)
        ]
        if not all(tokens):
            raise invalid("A label has no token.", "parameters.candidate_labels")
        # Labels with equally many tokens fill the same gaps.
        counts = sorted({len(own) for own in tokens})
        texts = [f"{text} {before}{' '.join([MASK] * count)}{after}" for count in counts]
        wanted: list[str | int] = [*{token for own in tokens for token in own}]
        filled = await self._service.fill(served.name, texts, top_k=len(wanted), targets=wanted)
        scores = {
            (count, gap, entry["token"]): math.log(max(entry["score"], 1e-45))
            for count, gaps in zip(counts, filled, strict=True)
            # The text may have gaps of its own: the last ones are the label's.
            for gap, entries in enumerate(gaps[-count:])
            for entry in entries
        }
        return [
            sum(scores[len(own), gap, token] for gap, token in enumerate(own)) / len(own)
            for own in tokens
        ]

    async def _translated(self, served: Served, inputs: Any, given: Any) -> Any:
        """Return the translation of each text."""
        answers = await self._rewritten(served, inputs, given)
        return [{"translation_text": answer["translation"]} for answer in answers]

    async def _summarized(self, served: Served, inputs: Any, given: Any) -> Any:
        """Return the summary of each text."""
        answers = await self._rewritten(served, inputs, given)
        return [{"summary_text": answer["summary"]} for answer in answers]

    async def _rewritten(self, served: Served, inputs: Any, given: Any) -> Any:
        """Answer with what is written for each text."""
        parameters = checked(TranslationParameters, given, unknown=UNKNOWN, inside="parameters")
        rows = _columns(check_texts(inputs, self._options, "inputs"), served)
        whole = parameters.truncation == "do_not_truncate"
        options = {"truncate": False} if whole else None
        return await self._service.predict(served.name, rows, options=options)

    async def _predicted(self, served: Served, inputs: Any, given: Any) -> Any:
        """Answer as `pretune predict --json`, where no pipeline of transformers is like it."""
        if given:
            raise invalid("This task has no parameters.", "parameters")
        rows = check_inputs(inputs, self._options)
        return await self._service.predict(
            served_for(self._service, served.name, "predict").name, rows
        )

    async def _embedded(self, served: Served, given: Any) -> Any:
        """Return a vector for each text."""
        body = checked(EmbeddingParameters, given)
        name = served_for(self._service, served.name, "embed").name
        embedded = await self._service.embed(
            name,
            check_texts(body.inputs, self._options, "inputs"),
            prompt_name=body.prompt_name,
            dimensions=body.dimensions,
            normalize=body.normalize,
            truncate=body.truncate is not False,
        )
        return embedded.vectors.tolist()

    # Text generation, as TGI has it.

    async def _generated(self, served: Served, body: HubRequest) -> Response:
        parameters = checked(
            GenerationParameters, body.parameters or {}, unknown=UNKNOWN, inside="parameters"
        )
        name = served_for(self._service, served.name, "generate").name
        prompts = check_texts(body.inputs, self._options, "inputs")
        decoding = _decoding(parameters, self._options)
        if body.stream:
            if len(prompts) != 1:
                raise invalid("A stream has one text as its 'inputs'.", "inputs")
            pieces = await begun(self._service.generate(name, prompts[0], decoding))
            return EventStream(_tgi_events(pieces, prompts[0], parameters, decoding), pieces)
        if len(prompts) > self._options.max_choices:
            raise over_limit(
                413,
                "max_choices",
                f"'inputs' has {len(prompts):,} texts to continue; the limit is "
                f"{self._options.max_choices} (max_choices).",
                "inputs",
            )
        works = [
            _whole(self._service.generate(name, prompt, decoding), prompt, parameters, decoding)
            for prompt in prompts
        ]
        return _json(await together(works))


def _columns(rows: Sequence[Any], served: Served) -> list[dict[str, str]]:
    """Turn inputs as transformers has them into what a model reads."""
    columns = []
    for number, row in enumerate(rows):
        if isinstance(row, dict) and "text" in row and set(row) <= {"text", "text_pair"}:
            row = [row["text"], *([row["text_pair"]] if "text_pair" in row else [])]
        if not isinstance(row, dict):
            texts = [row] if isinstance(row, str) else row
            row = (
                dict(zip(served.inputs, texts, strict=False))
                if len(texts) == len(served.inputs)
                else {}
            )
        wrong = next((name for name in served.inputs if not isinstance(row.get(name), str)), None)
        if wrong is not None:
            raise invalid(
                f"'inputs[{number}]': the model '{served.name}' reads the "
                f"{'text' if len(served.inputs) == 1 else 'texts'} {', '.join(served.inputs)}.",
                "inputs",
            )
        columns.append({name: row[name] for name in served.inputs})
    return columns


def _labels(answer: Mapping[str, Any], top_k: int | None) -> list[dict[str, Any]]:
    """Return the labels of an answer, best first; a regressor has one without a name."""
    scores = answer.get("scores")
    if not isinstance(scores, dict):
        return [{"label": "LABEL_0", "score": answer["score"]}]
    ranked = sorted(scores.items(), key=lambda item: -item[1])[:top_k]
    return [{"label": label, "score": score} for label, score in ranked]


def _spans(answer: Mapping[str, Any], impossible: bool | None) -> list[dict[str, Any]]:
    """Return possible answers, best first.

    Args:
        answer: of `predict`, with candidates.
        impossible: whether there may be none; None: as the model decided.
    """
    fields = ("answer", "score", "start", "end")
    spans = [{name: span[name] for name in fields} for span in answer.get("candidates", ())]
    own = {name: answer[name] for name in fields}
    if answer["start"] is not None:
        return [own, *(span for span in spans if span != own)]
    # transformers marks that there is none by an empty answer at the beginning.
    none = {"answer": "", "score": answer["score"], "start": 0, "end": 0}
    return (spans or [none]) if impossible is False else [none, *spans]


def _distribution(labels: Sequence[str], scores: Sequence[float]) -> list[dict[str, Any]]:
    """Return labels with the softmax of their scores, best first."""
    best = max(scores)
    weights = [math.exp(score - best) for score in scores]
    pairs = zip(labels, weights, strict=True)
    ranked = sorted(pairs, key=lambda pair: -pair[1])
    return [{"label": label, "score": weight / sum(weights)} for label, weight in ranked]


def _check_top_k(top_k: int, options: ServeOptions) -> None:
    if top_k > options.max_top_k:
        raise over_limit(
            422,
            "max_top_k",
            f"'top_k' is {top_k:,}; the limit is {options.max_top_k:,} (max_top_k).",
            "parameters.top_k",
        )


def _decoding(parameters: GenerationParameters, options: ServeOptions) -> Decoding:
    """Return how a continuation is written: greedily, unless a parameter is about drawing."""
    wanted = parameters.max_new_tokens or min(MAX_NEW_TOKENS, options.max_new_tokens)
    if wanted > options.max_new_tokens:
        raise over_limit(
            422,
            "max_new_tokens",
            f"'max_new_tokens' is {wanted:,}; the limit is {options.max_new_tokens:,}.",
            "parameters.max_new_tokens",
        )
    if len(parameters.stops) > options.max_stops:
        raise over_limit(
            422,
            "max_stops",
            f"'stop' has {len(parameters.stops):,} texts; the limit is {options.max_stops}.",
            "parameters.stop",
        )
    if any(not 0 < len(text) <= options.max_stop_chars for text in parameters.stops):
        raise over_limit(
            422,
            "max_stop_chars",
            f"'stop': a text has to have 1 to {options.max_stop_chars} characters.",
            "parameters.stop",
        )
    drawn = ("temperature", "top_k", "top_p", "typical_p")
    extra = {
        name: value
        for name in (*drawn, "repetition_penalty")
        if (value := getattr(parameters, name)) is not None
    }
    if not parameters.do_sample and not {*drawn} & {*extra}:
        extra["temperature"] = 0.0
    seed = secrets.randbits(63) if parameters.seed is None else parameters.seed
    try:
        return Decoding(
            **{"top_p": 1.0, **extra, "max_new_tokens": wanted, "seed": seed},
            stop=tuple(parameters.stops),
        )
    except PretuneError as error:
        raise invalid(error.message, "parameters") from None


#: Why a continuation ended -> TGI's word; others are `eos_token`.
_FINISH = {"length": "length", "stop_text": "stop_sequence"}


async def _whole(
    pieces: AsyncGenerator[Piece, None],
    prompt: str,
    parameters: GenerationParameters,
    decoding: Decoding,
) -> dict[str, Any]:
    """Return a continuation as TGI does."""
    text, tokens, finish = "", list[dict[str, Any]](), ""
    try:
        async for piece in pieces:
            text += piece.text
            tokens += _tokens(piece)
            finish = piece.finish or finish
    finally:
        await pieces.aclose()
    answer: dict[str, Any] = {"generated_text": _shown_whole(prompt, text, parameters)}
    if parameters.details:
        answer["details"] = {
            "finish_reason": _FINISH.get(finish, "eos_token"),
            "generated_tokens": len(tokens),
            "seed": None if decoding.greedy else decoding.seed,
            "prefill": [],
            "tokens": tokens,
        }
    return answer


def _shown_whole(prompt: str, text: str, parameters: GenerationParameters) -> str:
    """A text after its prompt, unless that is not wanted: TGI's default, and transformers'."""
    return text if parameters.return_full_text is False else prompt + text


def _tokens(piece: Piece) -> list[dict[str, Any]]:
    rows = zip(piece.tokens, piece.strings, piece.logprobs, strict=True)
    ends = piece.finish == "stop_token"
    return [
        {
            "id": token,
            "text": string.decode(errors="replace"),
            "logprob": logprob,
            "special": ends and number == len(piece.tokens) - 1,
        }
        for number, (token, string, logprob) in enumerate(rows)
    ]


async def _tgi_events(
    pieces: Begun[Piece],
    prompt: str,
    parameters: GenerationParameters,
    decoding: Decoding,
) -> AsyncGenerator[bytes, None]:
    """Yield an event for each token; the last one has the whole text."""
    text, index = "", 0
    try:
        async for piece in pieces:
            text += piece.text
            for number, token in enumerate(_tokens(piece)):
                index += 1
                last = piece.finish is not None and number == len(piece.tokens) - 1
                # The text of a token is what it adds to what has been shown.
                shown = piece.text if number == len(piece.tokens) - 1 else ""
                body: dict[str, Any] = {
                    "index": index,
                    "token": {**token, "text": token["text"] if token["special"] else shown},
                    "generated_text": None,
                    "details": None,
                }
                if last:
                    body["generated_text"] = _shown_whole(prompt, text, parameters)
                    body["details"] = {
                        "finish_reason": _FINISH.get(piece.finish or "", "eos_token"),
                        "generated_tokens": index,
                        "seed": None if decoding.greedy else decoding.seed,
                        "input_length": piece.prompt_tokens,
                    }
                yield event(body)
    except Refusal as refusal:
        yield event(errors(refusal)[1])
    except Exception:
        # A mistake of ours: the client is told, and then whoever runs the server.
        yield event(errors(INTERNAL)[1])
        raise


def _json(body: Any) -> Response:
    return Response(json_bytes(body), media_type="application/json")


def errors(refusal: Refusal) -> tuple[int, dict[str, Any]]:
    """Return status and body of a refusal: TGI's `error` and `error_type`."""
    kinds = {429: "overloaded", 503: "overloaded", 504: "incomplete_generation"}
    usual = "generation" if refusal.status >= 500 else "validation"
    return refusal.status, {
        "error": refusal.message,
        "error_type": kinds.get(refusal.status, usual),
    }
