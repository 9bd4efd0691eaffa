"""The ladder: the classic language models on one text, one split, one budget, one axis.

Each rung is a model that was the best idea of its time. The neural ones are recipes for the one
training loop (report/climb.py); the n-gram model is counted. All are measured on the text that was
held back, in bits for each character, which depend neither on the tokenizer nor on the model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pretune.checkpoints.atomic_io import atomic_text, make_folder
from pretune.errors import RunError, did_you_mean, not_writable

#: The n of the n-gram model, where tokens are characters, and where they are pieces of words.
ORDERS = {"char": 7, "bpe": 4}


@dataclass(frozen=True)
class Rung:
    """One step of the ladder.

    Attributes:
        title: for people, with the year of its idea as a language model.
        start: the size it varies; None for what is counted.
        config: what differs from that size.
        block: tokens of each sequence.
        rate: the learning rate at its peak.
    """

    title: str
    start: str | None = None
    config: Mapping[str, Any] | None = None
    block: int = 64
    rate: float = 2e-3


def _recurrent(title: str, cell: str, rate: float) -> Rung:
    sizes = {"embedding_size": 64, "hidden_size": 256, "num_hidden_layers": 1}
    return Rung(title, f"{cell}-small", sizes, rate=rate)


#: From the oldest to the newest.
RUNGS = {
    "ngram": Rung("Kneser-Ney n-gram (1995)"),
    "nnlm": Rung(
        "NNLM (2003)", "nnlm", {"order": 9, "embedding_size": 32, "hidden_size": 256}, rate=1e-2
    ),
    "rnn": _recurrent("RNN (2010)", "rnn", 1e-3),
    "lstm": _recurrent("LSTM (2012)", "lstm", 8e-3),
    "gru": _recurrent("GRU (2014)", "gru", 6e-3),
    "gpt": Rung(
        "GPT (2018)",
        "gpt2-small",
        {"n_layer": 4, "n_embd": 128, "n_head": 4, "n_positions": 128},
        block=128,
        rate=2e-3,
    ),
}


@dataclass(frozen=True)
class LadderOptions:
    """What to climb.

    Attributes:
        corpus: as `data.train` of a recipe.
        output: the folder for everything.
        level: `char` or `bpe`: what a token is.
        vocab_size: of `bpe`.
        minutes: of training for each rung; or
        updates: of each rung.
        rungs: their names.
        seed: of weights, data order and samples.
        device: as `train.device`.
    """

    corpus: str
    output: Path
    level: str = "char"
    vocab_size: int = 1024
    minutes: float | None = None
    updates: int | None = None
    rungs: Sequence[str] = tuple(RUNGS)
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.level not in ORDERS:
            raise RunError(f"--level: there is no '{self.level}'", did_you_mean(self.level, ORDERS))
        for name in self.rungs:
            if name not in RUNGS:
                raise RunError(f"--rungs: no rung is called '{name}'", did_you_mean(name, RUNGS))
        if not self.rungs:
            raise RunError("--rungs: none is named", "Known: " + ", ".join(RUNGS) + ".")
        if (self.minutes is None) == (self.updates is None):
            raise RunError("a ladder needs a budget: minutes or updates, not both")
        if (self.minutes or self.updates or 0) <= 0:
            raise RunError("the budget of a rung must be more than 0")

    @property
    def budget(self) -> str:
        """For people."""
        if self.updates is not None:
            return f"{self.updates:,} updates"
        return f"{self.minutes:g} min of training"


@dataclass(frozen=True)
class RungResult:
    """How one model did.

    Attributes:
        name: of the rung.
        title: for people.
        parameters: numbers that it learned.
        seconds: of training: updates, or counting; evaluation not counted.
        updates: 0 for what is counted.
        tokens: trained on, over all epochs.
        bits_per_character: on what was held back.
        perplexity: a token, there.
        sample: how it goes on from `Ladder.prompt`.
        folder: where the model is.
    """

    name: str
    title: str
    parameters: int
    seconds: float
    updates: int
    tokens: int
    bits_per_character: float
    perplexity: float
    sample: str
    folder: str


@dataclass(frozen=True)
class Ladder:
    """All rungs, from the oldest to the newest.

    Attributes:
        corpus: what was read.
        level: what a token is.
        budget: of each rung, for people.
        seed: of all.
        vocabulary: tokens that the tokenizer knows.
        characters: that were trained on.
        held_back: characters that were measured on.
        prompt: of the samples: how the text that was held back begins.
        environment: versions and machine.
        rungs: the results.
    """

    corpus: str
    level: str
    budget: str
    seed: int
    vocabulary: int
    characters: int
    held_back: int
    prompt: str
    environment: dict[str, str]
    rungs: tuple[RungResult, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


@dataclass(frozen=True)
class Note:
    """What the folder of a ladder remembers of a rung, so that it need not be climbed twice.

    Attributes:
        settings: all that it depends on.
        updates: how many it is given; None before that is known.
        result: once it is finished.
    """

    settings: Mapping[str, Any]
    updates: int | None = None
    result: RungResult | None = None

    def write(self, path: Path) -> None:
        """Keep it.

        Raises:
            RunError: the file cannot be written.
        """
        try:
            make_folder(path.parent)
            atomic_text(path, json.dumps(asdict(self), ensure_ascii=False, indent=2) + "\n")
        except OSError as error:
            raise not_writable(path, "--out FOLDER", error) from None

    @classmethod
    def read(cls, path: Path) -> Note | None:
        """What was kept; None if nothing was, or it is not readable: then it is climbed again."""
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
            result = known["result"]
            return cls(
                dict(known["settings"]),
                known["updates"],
                None if result is None else RungResult(**result),
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None
