"""Generation beside transformers', in company and alone, and beyond the model's context."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pretune.bundle.bundle import load
from pretune.data.batch import PackedBatch
from pretune.decoding.continuations import Generation, TextChunk
from pretune.decoding.decoding import Decoding
from pretune.decoding.live_batch import _remaining
from pretune.decoding.sequence_reader import SequenceReader
from pretune.errors import DataError, PretuneError, RunError
from pretune.inference.generate import TextGenerator
from pretune.inference.prompts import stop_tokens_of
from pretune.models.heads.language import CausalLM
from tests.inference.conftest import CONTEXT, Pair

PROMPTS = ["The film", "Once upon a time there was", "中国", "a"]
GREEDY = {"temperature": 0, "max_new_tokens": 12}
#: Many stop tokens: some searches end early.
STOPS = tuple(range(0, 90, 3))


def write(pair: Pair, prompts: list[Any], **options: Any) -> list[Generation]:
    return pair.writer.generate(prompts, Decoding(**options))


def ids_of(pair: Pair, prompt: str) -> list[int]:
    ids = pair.bundle.tokenizer.encode([prompt])[0].ids
    return ids[:-1] if ids[0] == pair.bundle.tokenizer.special_id("cls_token") else ids


def theirs(pair: Pair, prompt: str, stops: Collection[int], **options: Any) -> Any:
    """What transformers' generate gives for one prompt alone."""
    stops = sorted(stops)
    ids = torch.tensor([ids_of(pair, prompt)])
    return pair.theirs.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        eos_token_id=stops,
        pad_token_id=stops[0],
        max_new_tokens=12,
        return_dict_in_generate=True,
        output_scores=True,
        **options,
    )


def new_tokens(pair: Pair, prompt: str, row: torch.Tensor, stops: Collection[int]) -> list[int]:
    """Without the prompt, and without what fills up behind the stop token."""
    tokens = row[len(ids_of(pair, prompt)) :].tolist()
    ends = [i for i, token in enumerate(tokens) if token in stops]
    return tokens[: ends[0] + 1] if ends else tokens


@pytest.fixture(params=["bpe", "wordpiece"])
def pair(request: pytest.FixtureRequest) -> Pair:
    found: Pair = request.getfixturevalue(request.param)
    return found


@pytest.mark.parametrize(
    "options",
    [{}, {"repetition_penalty": 1.7}, {"no_repeat_ngram_size": 2}, {"no_repeat_ngram_size": 1}],
)
def test_greedy_is_transformers(pair: Pair, options: dict[str, Any]) -> None:
    ours = {name.removesuffix("_size"): value for name, value in options.items()}
    found = write(pair, PROMPTS, **GREEDY, **ours)
    for prompt, generation in zip(PROMPTS, found, strict=True):
        stops = stop_tokens_of(pair.bundle)
        expected = theirs(pair, prompt, stops, **options)
        assert list(generation.tokens) == new_tokens(pair, prompt, expected.sequences[0], stops)


@pytest.mark.parametrize("stops", [None, STOPS], ids=["own", "many"])
@pytest.mark.parametrize("beams", [1, 2, 3, 4])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"length_penalty": 0.0},
        {"length_penalty": 2.0},
        {"length_penalty": -1.0, "early_stopping": True},
        {"no_repeat_ngram_size": 2, "repetition_penalty": 1.3},
    ],
)
def test_beam_search_is_transformers(
    pair: Pair, beams: int, options: dict[str, Any], stops: tuple[int, ...] | None
) -> None:
    ours = {name.removesuffix("_size"): value for name, value in options.items()}
    plain = {"temperature": 0} if beams == 1 else {"samples": beams}
    plain |= {"beams": beams, "stop_tokens": stops}
    found = iter(write(pair, PROMPTS, max_new_tokens=12, **plain, **ours))
    stops = stops or tuple(stop_tokens_of(pair.bundle))
    if beams == 1:
        options = {
            k: v for k, v in options.items() if k not in ("length_penalty", "early_stopping")
        }
    for prompt in PROMPTS:
        expected = theirs(
            pair, prompt, stops, num_beams=beams, num_return_sequences=beams, **options
        )
        for i in range(beams):
            generation = next(found)
            assert list(generation.tokens) == new_tokens(pair, prompt, expected.sequences[i], stops)
            if beams > 1:
                score = float(expected.sequences_scores[i])
                assert generation.score == pytest.approx(score, abs=1e-4)


def test_some_searches_end_early_and_some_do_not(pair: Pair) -> None:
    """Else the comparison of searches would say little."""
    found = write(pair, PROMPTS, beams=4, samples=4, max_new_tokens=12, stop_tokens=STOPS)
    assert {generation.finish for generation in found} == {"stop_token", "length"}


@torch.inference_mode()
def test_log_probabilities_are_the_models_own(bpe: Pair) -> None:
    drawn = write(bpe, PROMPTS, max_new_tokens=9, temperature=0.7, repetition_penalty=1.5)
    searched = write(bpe, PROMPTS, max_new_tokens=9, beams=3, repetition_penalty=1.5)
    for generation in drawn + searched:
        ids = ids_of(bpe, str(generation.prompt))
        logits = bpe.theirs(torch.tensor([ids + list(generation.tokens)])).logits[0]
        logs = logits[len(ids) - 1 : -1].log_softmax(-1)
        expected = [float(logs[i, token]) for i, token in enumerate(generation.tokens)]
        assert generation.logprobs == pytest.approx(expected, abs=1e-4)
        assert generation.logprob == pytest.approx(sum(expected), abs=1e-3)


@pytest.mark.parametrize(
    ("ended", "rows"),
    [
        ([False, False], [0, 1]),
        ([False, True, False, False], [0, 3, 2]),
        ([True, False, True, False, True, False], [5, 1, 3]),
        ([True, True], []),
    ],
)
def test_the_last_ones_take_the_places_of_those_that_ended(
    ended: list[bool], rows: list[int]
) -> None:
    assert _remaining(ended) == rows


@pytest.mark.parametrize("options", [GREEDY, {"max_new_tokens": 12}, {"beams": 2}])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 16])
def test_company_changes_nothing(pair: Pair, options: dict[str, Any], batch_size: int) -> None:
    writer = TextGenerator.of(pair.bundle, device="cpu", batch_size=batch_size)
    decoding = Decoding(**{"max_new_tokens": 10, "seed": 5, **options})
    together = writer.generate(PROMPTS * 2, decoding)
    alone = [writer.generate([prompt], decoding)[0] for prompt in PROMPTS * 2]
    assert [g.tokens for g in together] == [g.tokens for g in alone]
    assert [g.text for g in together] == [g.text for g in alone]


def test_samples_differ_and_repeat(bpe: Pair) -> None:
    many = write(bpe, ["The film", "a"], samples=5, seed=3, max_new_tokens=10)
    assert [(g.prompt, g.sample) for g in many[:6]] == [
        *(("The film", i) for i in range(5)),
        ("a", 0),
    ]
    assert len({g.tokens for g in many[:5]}) == 5
    few = write(bpe, ["a"], samples=2, seed=3, max_new_tokens=10)
    assert [g.tokens for g in few] == [g.tokens for g in many[5:7]]
    assert write(bpe, ["a"], seed=4, max_new_tokens=10)[0].tokens != few[0].tokens


def test_draws_follow_the_model(bpe: Pair) -> None:
    """The first token of many samples, against transformers' probabilities."""
    from scipy.stats import chisquare

    count = 3000
    found = TextGenerator.of(bpe.bundle, device="cpu", batch_size=256).generate(
        ["The film"], Decoding(samples=count, max_new_tokens=1, top_k=5, top_p=1.0, temperature=2.0)
    )
    with torch.inference_mode():
        logits = bpe.theirs(torch.tensor([ids_of(bpe, "The film")])).logits[0, -1] / 2
    best = logits.topk(5)
    expected = best.values.double().softmax(0) * count
    observed = [sum(g.tokens == (int(token),) for g in found) for token in best.indices]
    assert chisquare(observed, expected.numpy()).pvalue > 1e-3


@pytest.mark.parametrize("beams", [1, 3])
def test_a_stop_text_ends_it_before_the_text(pair: Pair, beams: int) -> None:
    plain = {"temperature": 0, "repetition_penalty": 1.5, "max_new_tokens": 20}
    if beams > 1:
        plain = {"beams": beams, "max_new_tokens": 20, "repetition_penalty": 1.5}
    for free in write(pair, PROMPTS, **plain):
        stop = free.text[3:6]  # of several tokens, and beginning anywhere in one
        if len(stop) < 3 or beams > 1:
            stop = free.text[:2]
        if not stop:
            continue
        (found,) = write(pair, [free.prompt], stop=stop, **plain)
        assert stop not in found.text
        if beams == 1:
            assert found.finish == "stop_text"
            assert found.text == free.text[: free.text.index(stop)]
            assert found.tokens == free.tokens[: len(found.tokens)]


def pieces_of(pair: Pair, prompts: list[str], **options: Any) -> list[TextChunk]:
    return list(pair.writer.stream(prompts, Decoding(**options)))


@settings(max_examples=15)
@given(seed=st.integers(0, 10_000), stop=st.sampled_from([(), ("e",), ("th", " a"), ("中", "\n")]))
def test_pieces_make_up_the_text(bpe: Pair, seed: int, stop: tuple[str, ...]) -> None:
    options = {"seed": seed, "stop": stop, "max_new_tokens": 15, "samples": 2, "top_p": 1.0}
    texts: dict[tuple[int, int], str] = {}
    done: list[Generation] = []
    for piece in pieces_of(bpe, PROMPTS[:2], **options):
        key = piece.prompt, piece.sample
        texts[key] = texts.get(key, "") + piece.text
        if piece.done is not None:
            assert piece.done.text == texts[key]
            done.append(piece.done)
    assert len(done) == len(texts) == 4
    assert all(word not in text for word in stop for text in texts.values())
    key = lambda g: (g.prompt, g.sample)  # noqa: E731
    assert sorted(done, key=key) == sorted(write(bpe, PROMPTS[:2], **options), key=key)


def test_text_is_given_out_as_it_is_written(bpe: Pair) -> None:
    stream = bpe.writer.stream(["The film"], Decoding(max_new_tokens=40, top_k=20))
    assert next(stream).done is None


def test_stop_tokens_of_one_call(bpe: Pair) -> None:
    options = {**GREEDY, "no_repeat_ngram": 1}
    free = write(bpe, ["The film"], **options)[0]
    third = free.tokens[2]
    found = write(bpe, ["The film"], stop_tokens=(third,), **options)[0]
    assert (found.tokens, found.finish) == (free.tokens[:3], "stop_token")
    endless = write(bpe, PROMPTS, stop_tokens=(), samples=3, max_new_tokens=30)
    assert {g.finish for g in endless} == {"length"}
    with pytest.raises(PretuneError, match="stop_tokens: 5000"):
        write(bpe, ["The film"], stop_tokens=(5000,))


def test_a_bert_vocabulary_stops_at_sep_and_cls(wordpiece: Pair) -> None:
    tokenizer = wordpiece.bundle.tokenizer
    assert stop_tokens_of(wordpiece.bundle) == {
        tokenizer.special_id("sep_token"),
        tokenizer.special_id("cls_token"),
    }
    reader = SequenceReader(CausalLM(wordpiece.bundle.backbone), torch.device("cpu"))  # type: ignore[arg-type]
    with torch.inference_mode():
        reader.add([tokenizer.encode(["好 电影"])[0].ids[:-1]], [1])
    first = int(reader.logits.argmax())
    assert write(wordpiece, ["好 电影"], **GREEDY)[0].tokens[0] == first


@torch.inference_mode()
def test_beyond_the_context_the_last_half_is_read_anew(bpe: Pair) -> None:
    model = CausalLM(bpe.bundle.backbone).eval()  # type: ignore[arg-type]
    reader = SequenceReader(model, torch.device("cpu"))
    torch.manual_seed(0)
    prompts = [torch.randint(1, 300, (n,)).tolist() for n in (CONTEXT - 3, 5, CONTEXT + 9, CONTEXT)]
    reader.add(prompts, [1] * 4)
    seen = [prompt[-CONTEXT:] for prompt in prompts]
    for _ in range(2 * CONTEXT):
        alone = torch.cat([model(PackedBatch.of([window]))[-1:] for window in seen])
        torch.testing.assert_close(reader.logits, alone, atol=1e-5, rtol=1e-5)
        tokens = torch.randint(1, 300, (4,)).tolist()
        reader.feed(tokens)
        for i, token in enumerate(tokens):
            full = len(seen[i]) == CONTEXT
            seen[i] = [*seen[i], token][-CONTEXT // 2 :] if full else [*seen[i], token]
    assert [len(history) for history in reader.histories] == [
        len(prompt) + 2 * CONTEXT for prompt in prompts
    ]


@pytest.mark.parametrize("beams", [1, 2])
def test_texts_longer_than_the_context(bpe: Pair, beams: int) -> None:
    found = write(bpe, PROMPTS, beams=beams, max_new_tokens=3 * CONTEXT, stop_tokens=())
    assert [len(generation.tokens) for generation in found] == [3 * CONTEXT] * 4


def test_an_empty_prompt_begins_with_the_end_of_the_last_text(bpe: Pair, wordpiece: Pair) -> None:
    (end,) = stop_tokens_of(bpe.bundle)
    assert write(bpe, [""], **GREEDY)[0].tokens == write(bpe, [[end]], **GREEDY)[0].tokens
    start = wordpiece.bundle.tokenizer.special_id("cls_token")
    assert (
        write(wordpiece, [""], **GREEDY)[0].tokens
        == write(wordpiece, [[start]], **GREEDY)[0].tokens
    )


def test_no_token_left_to_write(bpe: Pair) -> None:
    everything = list(range(bpe.bundle.tokenizer.vocab_size))
    for beams in (1, 2):
        options = {"no_repeat_ngram": 1, "beams": beams}
        (found,) = write(bpe, [everything], **options)
        assert (found.finish, found.tokens, found.text) == ("exhausted", (), "")
        (found,) = write(bpe, [everything[1:-1]], stop_tokens=(), **options)
        assert (found.finish, len(found.tokens)) == ("exhausted", 2)


@pytest.mark.parametrize(
    ("prompt", "said"),
    [("\ud800", "prompt 2: not valid Unicode"), ([1, 900], "prompt 2: token 900")],
)
def test_prompts_that_cannot_be_read(bpe: Pair, prompt: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        write(bpe, ["a", prompt])


def test_an_empty_prompt_without_a_first_token(bpe: Pair) -> None:
    writer = TextGenerator(CausalLM(bpe.bundle.backbone), bpe.bundle.tokenizer)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="prompt 1: empty"):
        writer.generate([""])


def test_a_bert_cannot(tiny_folder: Any) -> None:
    with pytest.raises(RunError, match="a bert model cannot generate text"):
        TextGenerator.of(load(tiny_folder))


class Counting:
    """A language model without weights: after n comes n + 1; what an RNN would look like."""

    context_length = None
    opening = None
    vocab_size = 300

    def start(self, prompts: Any) -> Any:
        state = [prompt[-1] for prompt in prompts]
        return self._logits(state), _Numbers(state)

    def step(self, tokens: torch.Tensor, state: _Numbers) -> torch.Tensor:
        assert len(tokens) == len(state.last)
        state.last = tokens.tolist()
        return self._logits(state.last)

    def _logits(self, last: list[int]) -> torch.Tensor:
        return torch.nn.functional.one_hot((torch.tensor(last) + 1) % 300, 300) * 30.0


class _Numbers:
    def __init__(self, last: list[int]) -> None:
        self.last = last

    def select(self, rows: list[int]) -> None:
        self.last = [self.last[row] for row in rows]

    def extend(self, other: _Numbers) -> None:
        self.last = self.last + other.last


@pytest.mark.parametrize("beams", [1, 3])
def test_any_model_with_a_start_and_a_step_can_write(bpe: Pair, beams: int) -> None:
    writer = TextGenerator(Counting(), bpe.bundle.tokenizer, stop_tokens=[20], batch_size=3)
    prompts = [[n] for n in (17, 12, 5, 250, 18, 19)]
    found = writer.generate(prompts, Decoding(beams=beams, max_new_tokens=9))
    for (start,), generation in zip(prompts, found, strict=True):
        last = min(start + 9, 20) if start < 20 else start + 9
        assert generation.tokens == tuple(range(start + 1, last + 1))


def test_a_running_batch_takes_prompts_as_texts(bpe: Pair) -> None:
    """With the model's own stop tokens and checks, as `generate` has them."""
    decoding = Decoding(max_new_tokens=8, seed=2, samples=2)
    batch = bpe.writer.live_batch(prompt_tokens=3)
    assert bpe.writer.ask(batch, PROMPTS[1], decoding, tag=1) == len(ids_of(bpe, PROMPTS[1]))
    bpe.writer.ask(batch, "", tag=2)
    for prompt, stops, said in (([900], None, "token 900"), ("a", (5000,), "stop_tokens: 5000")):
        with pytest.raises(PretuneError, match=said):
            bpe.writer.ask(batch, prompt, Decoding(stop_tokens=stops))
    ended: dict[int, list[Generation]] = {1: [], 2: []}
    while batch:
        for tag, piece in batch.step():
            ended[tag] += [] if piece.done is None else [piece.done]
    key = lambda generation: generation.sample  # noqa: E731
    alone = {1: bpe.writer.generate([PROMPTS[1]], decoding), 2: bpe.writer.generate([""])}
    for tag, generations in alone.items():
        together = sorted(ended[tag], key=key)
        expected = [(g.tokens, g.finish) for g in generations]
        assert [(g.tokens, g.finish) for g in together] == expected
