"""Continuous batching: company changes nothing, and nobody waits for another to end."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pretune.data.batch import PackedBatch
from pretune.decoding.continuations import Generation, Prompt, TextChunk
from pretune.decoding.decoding import Decoding
from pretune.decoding.live_batch import LiveBatch
from pretune.decoding.writer import Writer
from pretune.errors import PretuneError
from pretune.models.classics.ngram import NGram
from pretune.models.gpt2 import Gpt2Config, Gpt2Model
from pretune.models.heads.language import CausalLM
from pretune.tokenizers.tokenizer import Tokenizer
from tests.inference.conftest import Pair
from tests.models.classics.helpers import build_nnlm, build_rnn
from tests.models.test_transformer import model_of

CPU = torch.device("cpu")
#: Of the smallest model; prompts have no other tokens.
VOCABULARY = 11
#: The tokens of a GPT-2: long prompts and continuations do not fit.
CONTEXT = 24
#: Settings that each need a computation of their own.
HOW = [
    Decoding(temperature=0, top_p=1.0),
    Decoding(),
    Decoding(temperature=1.7, top_k=5, top_p=1.0, seed=3),
    Decoding(min_p=0.2, typical_p=0.9, samples=2, seed=1),
    Decoding(repetition_penalty=1.5, never=(3, 4), samples=3),
    Decoding(no_repeat_ngram=1, temperature=0),
    Decoding(stop_tokens=(0, 5), length_ratio=0.5),
    Decoding(stop=("&", "'"), seed=7),
]


def gpt2() -> CausalLM:
    torch.manual_seed(3)
    config = Gpt2Config(vocab_size=VOCABULARY, n_positions=CONTEXT, n_embd=16, n_layer=2, n_head=2)
    model = CausalLM(Gpt2Model(config))
    for name, parameter in model.named_parameters():
        norm = "norm" in name and name.endswith("weight")
        nn.init.normal_(parameter, mean=1.0 if norm else 0.0, std=0.3)
    return model.eval()


@cache
def model_named(name: str) -> Any:
    """A small model; in float64, so that no two tokens are equal but for rounding."""
    if name == "ngram":
        texts = np.random.default_rng(0).integers(0, VOCABULARY, (50, 9)).tolist()
        return NGram.fit(texts, order=3, vocab_size=VOCABULARY)
    made: nn.Module
    if name == "gpt2":
        made = gpt2()
    elif name == "translator":
        made = model_of()
    elif name == "nnlm":
        made = build_nnlm(dropout=0.0)
    else:
        made = build_rnn("lstm")
    return made.double().eval()


@pytest.fixture(scope="module")
def tokenizer(bpe: Pair) -> Tokenizer:
    return bpe.bundle.tokenizer


@dataclass
class Asked:
    """A request of a client."""

    prompt: Prompt
    decoding: Decoding
    at: int  # before which step it comes
    leaves: int | None  # before which step the client hangs up


def ids(length: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, VOCABULARY, length).tolist()


@st.composite
def requests(draw: st.DrawFn) -> list[Asked]:
    asked = []
    for number in range(draw(st.integers(1, 5))):
        prompt = Prompt((), ids(draw(st.integers(1, CONTEXT + 4)), number), salt=number)
        limit = draw(st.sampled_from([1, 3, 8, 12]))
        decoding = replace(draw(st.sampled_from(HOW)), max_new_tokens=limit)
        at, stays = draw(st.integers(0, 10)), draw(st.sampled_from([None, None, 0, 1, 5]))
        asked.append(Asked(prompt, decoding, at, None if stays is None else at + stays))
    return asked


Ended = dict[int, list[Generation]]


def run(batch: LiveBatch, asked: Sequence[Asked]) -> tuple[Ended, list[tuple[int, TextChunk]]]:
    """Let requests come and go: what ended, by request, and all pieces."""
    ended: Ended = defaultdict(list)
    pieces = []
    for step in range(1000):
        for number, asking in enumerate(asked):
            if asking.at == step:
                batch.add(asking.prompt, asking.decoding, tag=number, top_logprobs=number % 3)
            if asking.leaves == step:
                batch.cancel(number)
        for number, piece in batch.step():
            pieces.append((number, piece))
            if piece.done is not None:
                ended[number].append(piece.done)
        if not batch and step > max(asking.at for asking in asked):
            return ended, pieces
    raise AssertionError("it does not end")


@pytest.mark.parametrize("name", ["gpt2", "rnn", "nnlm", "ngram", "translator"])
@settings(max_examples=6)
@given(
    asked=requests(),
    batch_size=st.integers(1, 5),
    prompt_tokens=st.sampled_from([None, 1, 4, 16]),
    join_together=st.integers(1, 3),
)
def test_each_gets_what_it_gets_alone(
    tokenizer: Tokenizer,
    name: str,
    asked: list[Asked],
    batch_size: int,
    prompt_tokens: int | None,
    join_together: int,
) -> None:
    model = model_named(name)
    options: dict[str, Any] = {"batch_size": batch_size, "prompt_tokens": prompt_tokens}
    batch = batch_of(model, tokenizer, join_together=join_together, **options)
    ended, pieces = run(batch, asked)
    for number, asking in enumerate(asked):
        alone = Writer(model, tokenizer, device=CPU).write([asking.prompt], asking.decoding)
        together = sorted(ended[number], key=lambda generation: generation.sample)
        if asking.leaves is None:
            assert [replace(g, logprobs=()) for g in together] == [
                replace(g, logprobs=()) for g in alone
            ]
        # Those who hung up got the beginning of what they would have got, or all.
        for own in alone:
            mine = [p for n, p in pieces if (n, p.sample) == (number, own.sample)]
            count = len([token for piece in mine for token in piece.tokens])
            assert tuple(t for piece in mine for t in piece.tokens) == own.tokens[:count]
            logprobs = [logprob for piece in mine for logprob in piece.logprobs]
            assert logprobs == pytest.approx(own.logprobs[:count], abs=1e-5)
            assert own.text.startswith("".join(piece.text for piece in mine))
            asked_for = number % 3
            for piece in mine:
                expected = [asked_for] * len(piece.tokens) if asked_for else []
                assert [len(best) for best in piece.top] == expected


def test_settings_that_end_in_every_way(tokenizer: Tokenizer) -> None:
    """Else the comparison with asking alone would say little."""
    asked = [
        Asked(Prompt((), ids(3, i)), replace(how, max_new_tokens=12), 0, None)
        for i, how in enumerate(HOW)
    ]
    ended, _ = run(LiveBatch(model_named("gpt2"), tokenizer, device=CPU), asked)
    finishes = {generation.finish for every in ended.values() for generation in every}
    assert finishes == {"length", "stop_token", "stop_text", "exhausted"}


class Watched:
    """A GPT-2 whose calls are recorded: `(name, number of tokens)`."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []
        self._model = model_named("gpt2")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def start(self, prompts: Sequence[Sequence[int]]) -> Any:
        self.calls.append(("start", sum(map(len, prompts))))
        return self._model.start(prompts)

    def follow(self, more: Sequence[Sequence[int]], state: Any) -> Any:
        self.calls.append(("follow", sum(map(len, more))))
        return self._model.follow(more, state)

    def step(self, tokens: Tensor, state: Any) -> Any:
        self.calls.append(("step", len(tokens)))
        return self._model.step(tokens, state)

    def since(self) -> list[tuple[str, int]]:
        calls, self.calls = self.calls, []
        return calls


@pytest.fixture
def watched() -> Watched:
    return Watched()


def batch_of(model: Any, tokenizer: Tokenizer, **options: Any) -> LiveBatch:
    return LiveBatch(model, tokenizer, device=CPU, **options)


def tags(batch: LiveBatch) -> list[Any]:
    return [tag for tag, _ in batch.step()]


ENDLESS = Decoding(stop_tokens=(), max_new_tokens=1000)


def test_a_new_request_joins_at_the_next_token(watched: Watched, tokenizer: Tokenizer) -> None:
    batch = batch_of(watched, tokenizer)
    batch.add(Prompt((), [1, 2]), ENDLESS, tag="a")
    assert tags(batch) == ["a"]
    batch.add(Prompt((), [3]), ENDLESS, tag="b")
    batch.add(Prompt((), [4]), ENDLESS, tag="c")
    watched.since()
    assert tags(batch) == ["a", "b", "c"]
    # Prompts that come together are read together.
    assert watched.since() == [("step", 1), ("start", 2)]
    tags(batch)
    assert watched.since() == [("step", 3)]


def test_what_has_ended_leaves_at_once(watched: Watched, tokenizer: Tokenizer) -> None:
    batch = batch_of(watched, tokenizer, batch_size=2)
    for tag, limit in (("a", 1), ("b", 3), ("c", 2)):
        batch.add(Prompt((), [1, 2]), replace(ENDLESS, max_new_tokens=limit), tag=tag)
    assert len(batch) == 3
    lengths = []
    for expected in (["a", "b"], ["b", "c"], ["b", "c"]):
        assert sorted(tags(batch)) == expected
        lengths.append(len(batch))
    assert lengths == [2, 2, 0]
    assert not batch
    assert batch.step() == []


def test_a_client_that_hangs_up_frees_its_place(watched: Watched, tokenizer: Tokenizer) -> None:
    batch = batch_of(watched, tokenizer, batch_size=2, prompt_tokens=4)
    batch.add(Prompt((), [1]), replace(ENDLESS, samples=2), tag="a")
    batch.add(Prompt((), [2]), ENDLESS, tag="b")
    batch.add(Prompt((), ids(20)), ENDLESS, tag="c")
    assert tags(batch) == ["a", "a"]
    batch.cancel("b")  # before it began
    batch.cancel("a")  # at work
    batch.cancel("nobody")
    assert len(batch) == 1
    assert tags(batch) == []
    batch.cancel("c")  # while its prompt is read
    assert len(batch) == 0
    batch.add(Prompt((), ids(20)), ENDLESS, tag="d")
    watched.since()
    assert [tags(batch) for _ in range(5)] == [[], [], [], [], ["d"]]
    assert watched.since() == [("start", 4), *[("follow", 4)] * 4]


def test_a_long_prompt_does_not_hold_up_the_others(watched: Watched, tokenizer: Tokenizer) -> None:
    batch = batch_of(watched, tokenizer, prompt_tokens=8)
    batch.add(Prompt((), [1]), ENDLESS, tag="a")
    tags(batch)
    for seed in (1, 2):
        batch.add(Prompt((), ids(20, seed)), ENDLESS, tag=f"long {seed}")
    seen = []
    for step in range(8):
        batch.add(Prompt((), [2, 3]), replace(ENDLESS, max_new_tokens=1), tag="short")
        watched.since()
        seen.append(tags(batch))
        calls = watched.since()
        assert sum(count for name, count in calls if name != "step") <= 8, step
    # At each step the first writes a token, and a new one joins; the long ones one after the other.
    assert all({"a", "short"} <= set(writing) for writing in seen)
    begins = [next(i for i, own in enumerate(seen) if f"long {n}" in own) for n in (1, 2)]
    assert begins == [3, 7]


def test_short_prompts_do_not_hold_up_a_long_one(watched: Watched, tokenizer: Tokenizer) -> None:
    """Though enough of them come to take all the tokens of each step."""
    batch = batch_of(watched, tokenizer, prompt_tokens=8)
    batch.add(Prompt((), ids(20)), ENDLESS, tag="long")
    seen = []
    for _ in range(6):
        for _ in range(4):
            batch.add(Prompt((), [2, 3]), replace(ENDLESS, max_new_tokens=1), tag="short")
        seen.append(tags(batch))
    assert [writing.count("short") for writing in seen] == [4, 2, 2, 2, 2, 2]
    assert [writing.count("long") for writing in seen] == [0, 0, 0, 0, 0, 1]


def test_samples_read_their_prompt_once(watched: Watched, tokenizer: Tokenizer) -> None:
    """Even if there is never room for all of them."""
    batch = batch_of(watched, tokenizer, batch_size=2, prompt_tokens=None)
    many = replace(ENDLESS, samples=5, max_new_tokens=3)
    batch.add(Prompt((), [1, 2, 3]), many, tag="a")
    batch.add(Prompt((), [4]), replace(many, samples=3), tag="b")
    ended = [(tag, piece.done) for _ in range(30) for tag, piece in batch.step() if piece.done]
    assert len(ended) == 8
    assert not batch
    read = [call for call in watched.since() if call[0] != "step"]
    assert read == [("start", 3), ("start", 1)]
    writer = Writer(model_named("gpt2"), tokenizer, device=CPU)
    alone = writer.write([Prompt((), [1, 2, 3])], many)
    mine = [generation for tag, generation in ended if tag == "a"]
    assert [(g.sample, g.tokens) for g in mine] == [(g.sample, g.tokens) for g in alone]


def test_some_join_together(watched: Watched, tokenizer: Tokenizer) -> None:
    batch = batch_of(watched, tokenizer, batch_size=4, join_together=2)
    for tag, limit in enumerate((1, 2, 9, 9, 9, 9)):
        batch.add(Prompt((), [1]), replace(ENDLESS, max_new_tokens=limit), tag=tag)
    assert [sorted(tags(batch)) for _ in range(3)] == [[0, 1, 2, 3], [1, 2, 3], [2, 3, 4, 5]]
    # The last one to wait has nobody to wait for.
    batch.cancel(5)
    batch.add(Prompt((), [1]), ENDLESS, tag=6)
    assert sorted(tags(batch)) == [2, 3, 4, 6]


@pytest.mark.parametrize("penalty", [1.0, 1.8])
def test_the_most_probable_tokens_are_the_models_own(
    watched: Watched, tokenizer: Tokenizer, penalty: float
) -> None:
    batch = batch_of(watched, tokenizer)
    how = Decoding(max_new_tokens=4, temperature=0.5, top_k=2, repetition_penalty=penalty)
    batch.add(Prompt((), [1, 2]), replace(how, stop_tokens=()), tag="a", top_logprobs=3)
    batch.add(Prompt((), [3, 5]), how, tag="b")
    batch.add(Prompt((), [4]), replace(how, stop_tokens=()), tag="c", top_logprobs=99)
    written: dict[str, list[int]] = {"a": [1, 2], "c": [4]}
    while batch:
        for tag, piece in batch.step():
            if tag == "b":
                assert piece.top == ()
                continue
            logits = model_named("gpt2")(PackedBatch.of([written[tag]]))[-1].float()
            best = logits.log_softmax(-1).sort(descending=True)
            count = 3 if tag == "a" else VOCABULARY
            (top,) = piece.top
            assert [token for token, _ in top] == best.indices[:count].tolist()
            values = best.values[:count].tolist()
            assert [logprob for _, logprob in top] == pytest.approx(values, abs=1e-5)
            written[tag] += piece.tokens


def test_the_most_probable_tokens_are_computed_only_where_asked_for(
    watched: Watched, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*given: Any) -> Any:
        raise AssertionError("nobody asked")

    monkeypatch.setattr(Tensor, "topk", never)
    batch = batch_of(watched, tokenizer)
    batch.add(Prompt((), [1, 2]), replace(ENDLESS, temperature=0))
    assert len(batch.step()) == 1


def test_what_it_does_not_take(tokenizer: Tokenizer) -> None:
    batch = batch_of(model_named("gpt2"), tokenizer)
    with pytest.raises(PretuneError, match="beams is 2"):
        batch.add(Prompt((), [1]), Decoding(beams=2))
    with pytest.raises(PretuneError, match="no tokens"):
        batch.add(Prompt((), []), Decoding())
    assert len(batch) == 0


class Clock:
    """A model that counts its calls, and writes token 1 for ever."""

    context_length = None
    opening = None
    vocab_size = 2

    def __init__(self) -> None:
        self.calls = 0

    def start(self, prompts: Sequence[Sequence[int]]) -> Any:
        self.calls += 1
        return torch.tensor([[0.0, 1.0]] * len(prompts)), _Nothing()

    def step(self, tokens: Tensor, state: Any) -> Tensor:
        self.calls += 1
        return torch.tensor([[0.0, 1.0]] * len(tokens))


class _Nothing:
    """The state of a model that remembers nothing."""

    def select(self, rows: Sequence[int]) -> None:
        pass

    def extend(self, other: _Nothing) -> None:
        pass


def test_random_arrivals_take_far_fewer_calls_than_whole_batches(tokenizer: Tokenizer) -> None:
    """Both take at most 8 texts at a time, of 1 to some hundred tokens, half of them under 14."""
    random = np.random.default_rng(0)
    arrivals = np.sort(random.uniform(0, 150, 100))  # by calls of the model
    limits = random.geometric(1 / 20, 100).tolist()
    how = [Decoding(temperature=0, stop_tokens=(), max_new_tokens=limit) for limit in limits]
    # By the whole batch: whoever has come is written to the end, then the next ones.
    clock, done = Clock(), 0
    while done < 100:
        clock.calls = max(clock.calls, int(np.ceil(arrivals[done])))
        count = min(8, int(np.sum(arrivals <= clock.calls)) - done)
        batch = batch_of(clock, tokenizer, batch_size=8)
        for decoding in how[done : done + count]:
            batch.add(Prompt((), [1]), decoding)
        while batch:
            batch.step()
        done += count
    whole = clock.calls
    # Token by token.
    clock, done, written = Clock(), 0, 0
    batch = batch_of(clock, tokenizer, batch_size=8)
    while done < 100 or batch:
        if done < 100 and not batch:
            clock.calls = max(clock.calls, int(np.ceil(arrivals[done])))
        while done < 100 and arrivals[done] <= clock.calls:
            batch.add(Prompt((), [1]), how[done])
            done += 1
        written += len(batch.step())
    assert written == sum(limits)
    assert clock.calls < 0.6 * whole


@pytest.mark.parametrize(
    "how", [Decoding(top_p=1.0), Decoding(temperature=0, beams=3)], ids=["drawn", "searched"]
)
def test_rows_without_a_token_are_never_written(how: Decoding, tokenizer: Tokenizer) -> None:
    """Half of the rows only fill up the table; the model finds them as probable as others."""
    torch.manual_seed(0)
    size = tokenizer.vocab_size
    config = Gpt2Config(vocab_size=2 * size, n_positions=48, n_embd=16, n_layer=1, n_head=2)
    writer = Writer(CausalLM(Gpt2Model(config)).eval(), tokenizer, device=CPU)
    (made,) = writer.write([Prompt("", [1, 2])], replace(how, max_new_tokens=40))
    assert len(made.tokens) > 20
    assert max(made.tokens) < size
