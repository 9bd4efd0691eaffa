"""What the front and its workers tell each other: plain values, pickled between our own processes.

A message is a list of these values, behind its length:

    front -> worker   Ask, Cancel, Alive, Prepare, TakeOver, Abandon, Stop
    worker -> front   Loaded | Unloadable, then Part, Done, Failed, Alive, BatchRun, Preloaded,
                      Unusable
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Kind = Literal[
    "predict", "logits", "embed", "generate", "explain", "tokenize", "fill", "likelihood"
]
#: What models can be asked for; `chat` is `generate` of messages.
Ability = Literal["predict", "logits", "embed", "generate", "chat", "explain", "fill", "likelihood"]

_LENGTH = struct.Struct("!Q")
#: Bytes that stand before a message and tell how long it is.
HEADER = _LENGTH.size
#: The longest message, in bytes; a longer one is no message of ours.
LONGEST = 1 << 30


@dataclass(frozen=True)
class Served:
    """What is known of a served model without asking a worker."""

    name: str
    source: str  # as it was given: a run, a folder, a Hub id, `minilm`
    task: str | None  # the name of its task; None for a bare model, which only embeds or generates
    version: int  # 1, and one more each time that the model is replaced by a newer one
    model_type: str  # of its family, as in `config.json`
    labels: tuple[str, ...] | None  # in the order of the model's outputs; None where it has none
    inputs: tuple[str, ...]  # the columns that the task reads
    abilities: frozenset[Ability]
    context_length: int | None  # the most tokens of a text; None: no limit
    embedding_size: int | None  # numbers of a vector; None where it gives none
    parameters: int
    loaded: float  # when, in seconds since 1970
    card: str | None = None  # the model card in Markdown, if there is one
    prompt_names: tuple[str, ...] = ()  # of the prompts that its folder has for embeddings
    vocab_size: int = 0
    step: int | None = None  # the update of its run; None: of no run
    digest: str | None = None  # the beginning of the SHA-256 of its weights
    max_candidates: int = 1  # the most alternatives of an answer that it can tell

    @property
    def which(self) -> str:
        """Which model it is, in words: `update 600, weights 0f1e2d3c4b5a`."""
        known = {"update": self.step, "weights": self.digest}
        return ", ".join(f"{name} {value}" for name, value in known.items() if value is not None)


@dataclass(frozen=True)
class Counts:
    """What a request took."""

    tokens: int = 0  # that the model read
    queue: float = 0.0  # seconds from the worker's receiving it until the model first ran on it
    compute: float = 0.0  # seconds in batches that it was a part of, together with others
    version: int = 0  # of the model that answered
    truncated: int = 0  # how many of its texts were cut


@dataclass(frozen=True)
class Ask:
    """A request."""

    id: int
    model: str
    kind: Kind
    payload: Any  # the inputs, texts, prompt, ...
    options: Mapping[str, Any]
    deadline: float  # of `time.monotonic`, which all processes of a machine share


@dataclass(frozen=True)
class Cancel:
    """Nobody waits for the answer to a request any more."""

    id: int


@dataclass(frozen=True)
class Alive:
    """Is the worker at work? It answers with the same, between two batches."""


@dataclass(frozen=True)
class Prepare:
    """Load the newest weights of a model beside those that answer."""

    model: str
    attempt: int  # how many times workers were asked to, this time included
    version: int  # that it will have


@dataclass(frozen=True)
class TakeOver:
    """Let what was prepared answer from the next batch on."""

    model: str
    attempt: int


@dataclass(frozen=True)
class Abandon:
    """Drop what was prepared: another worker could not use it."""

    model: str
    attempt: int


@dataclass(frozen=True)
class Stop:
    """End; nothing is held any more."""


@dataclass(frozen=True)
class Loaded:
    """A worker has its models and can be asked."""

    models: tuple[Served, ...]
    notes: tuple[str, ...] = ()  # what people are told about how they were read


@dataclass(frozen=True)
class Unloadable:
    """A worker cannot load a model, and ends."""

    message: str
    hint: str | None = None
    ours: bool = False  # whether it is our own mistake, not the person's


@dataclass(frozen=True)
class Part:
    """A piece of the answer to a request; more follow."""

    id: int
    value: Any


@dataclass(frozen=True)
class Done:
    """The answer to a request, or its end after all parts."""

    id: int
    value: Any
    counts: Counts = Counts()


@dataclass(frozen=True)
class Failed:
    """A request that is refused, as `Refusal` has it."""

    id: int
    status: int
    kind: str
    message: str
    limit: str | None = None
    param: str | None = None


@dataclass(frozen=True)
class BatchRun:
    """A worker ran a model once, on what several requests asked for."""

    model: str
    kind: Kind
    tokens: int  # that it read; of `generate` those that it wrote
    requests: int
    seconds: float


@dataclass(frozen=True)
class Preloaded:
    """A newer model is there and can take over."""

    model: str
    attempt: int
    served: Served


@dataclass(frozen=True)
class Unusable:
    """A newer model cannot be used; the old one stays."""

    model: str
    attempt: int
    message: str


@dataclass(frozen=True)
class Piece:
    """A piece of a continuation."""

    sample: int  # the number of the continuation, from 0
    text: str  # the new text; may be empty
    tokens: tuple[int, ...] = ()  # the new tokens
    logprobs: tuple[float, ...] = ()  # of each of them, before penalties and filters
    strings: tuple[bytes, ...] = ()  # the bytes that each of them stands for
    # For each of them the most probable tokens, best first: id, bytes, logprob. None: not asked.
    top: tuple[tuple[tuple[int, bytes, float], ...], ...] | None = None
    finish: str | None = None  # why it ended, with its last piece: see `Generation`
    prompt_tokens: int = 0  # tokens of the prompt


@dataclass(frozen=True)
class Embedded:
    """Vectors of texts."""

    vectors: NDArray[np.float32]  # `[N, size]`, in the order of the texts
    tokens: int  # of all texts together, special tokens included


@dataclass(frozen=True)
class Token:
    """A token of a text."""

    id: int
    text: str  # the entry of the vocabulary
    special: bool  # whether the tokenizer added it, or it is a special token in the text
    start: int | None = None  # its first character in the text; None where it has none
    stop: int | None = None  # the character after its last


@dataclass(frozen=True)
class Generate:
    """The payload of a request to generate text."""

    # A text, the tokens of one, or messages `{"role": ..., "content": ...}`.
    prompt: str | Sequence[int] | Sequence[Mapping[str, str]]
    decoding: Any  # a `Decoding` with `samples` 1
    samples: int = 1
    template: bool = False  # whether a text is a message of the user, laid out by the template
    top: int = 0  # how many probable tokens to tell for each token
    # Whether a reply may be as long as the model reads after the conversation; the limit of
    # `decoding` is then only the most.
    open_ended: bool = False


def packed(messages: Sequence[object]) -> bytes:
    """Return messages as bytes that follow each other on a stream."""
    body = pickle.dumps(list(messages), protocol=pickle.HIGHEST_PROTOCOL)
    return _LENGTH.pack(len(body)) + body


def body_length(header: bytes | bytearray) -> int:
    """Return how many bytes follow the `HEADER` bytes of a message.

    Raises:
        ValueError: it is no message of ours.
    """
    (length,) = _LENGTH.unpack(header)
    if length > LONGEST:
        raise ValueError(f"a message of {length:,} bytes")
    return int(length)


def unpacked(body: bytes | bytearray) -> list[Any]:
    """Return the messages of `packed`, which only processes of ours may have written."""
    messages: list[Any] = pickle.loads(body)  # noqa: S301 - from a process that we started
    return messages
