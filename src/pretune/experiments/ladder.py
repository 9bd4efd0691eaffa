"""The ladder: the classic language models on one text, one split, one budget, one axis.

Each rung is a model that was the best idea of its time. The neural ones are recipes for the one
training loop; the n-gram model is counted. All are measured on the same held-back text, in bits per
character, which depend neither on the tokenizer nor on the kind of model.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pretune.bundle.bundle import load
from pretune.checkpoints.atomic_io import atomic_folder, atomic_text, make_folder, remove_folder
from pretune.checkpoints.ngram_files import load_ngram, save_ngram
from pretune.corpus.store import StoredDocuments
from pretune.data.batch import FeatureSet
from pretune.data.records import Records
from pretune.decoding.decoding import Decoding
from pretune.errors import DataError, RunError, did_you_mean, not_writable
from pretune.experiments.plan import measure_speed
from pretune.inference.generate import TextGenerator
from pretune.inference.runtime import choose_device
from pretune.models.classics.ngram import NGram
from pretune.recipe.recipe import Recipe
from pretune.tasks.causal_lm.causal_lm import CausalLm, CausalLmOptions
from pretune.tasks.features import record_features
from pretune.tasks.losses import NEXT
from pretune.tokenizers.load import load_tokenizer
from pretune.tokenizers.tokenizer import Tokenizer
from pretune.tokenizers.train import save_trained, train_tokenizer
from pretune.training.data import read_data
from pretune.training.run import resume, train_recipe
from pretune.training.run_folder import RECIPE
from pretune.training.run_result import environment

#: The n of the n-gram model, for tokens that are characters and for pieces of words.
ORDERS = {"char": 7, "bpe": 4}
#: Tokens of each update, on every rung.
UPDATE_TOKENS = 2048
#: Evaluations of a rung; the best of them counts.
EVALUATIONS = 3
#: The share of the text that is held back, and the characters that a ladder needs at least.
HELD_BACK, MIN_CHARACTERS = 0.1, 1000
#: Characters of the prompt that each model continues, and of its sample.
PROMPT_LENGTH, SAMPLE_LENGTH = 16, 60
#: Folder within that of the ladder: a note on each rung.
NOTES = "rungs"


@dataclass(frozen=True)
class Rung:
    """A model of the ladder."""

    title: str  # for people, with the year of the idea as a language model
    start: str | None = None  # the preset that it varies; None for a model that is counted
    config: Mapping[str, Any] | None = None
    block: int = 64
    rate: float = 2e-3


def _recurrent(title: str, cell: str, rate: float) -> Rung:
    sizes = {"embedding_size": 64, "hidden_size": 256, "num_hidden_layers": 1}
    return Rung(title, f"{cell}-small", sizes, rate=rate)


#: All rungs, from the oldest to the newest.
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
    """What to climb; raises RunError for an unknown level or rung, or not exactly one budget."""

    corpus: str  # the text, as `data.train` of a recipe
    output: Path
    level: str = "char"  # what a token is: `char` or `bpe`
    vocab_size: int = 1024
    minutes: float | None = None  # training time of each rung; give this or `updates`
    updates: int | None = None
    rungs: Sequence[str] = tuple(RUNGS)
    seed: int = 0
    device: str = "auto"  # where to train, as `train.device` of a recipe

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
        """The budget of a rung, for people."""
        if self.updates is not None:
            return f"{self.updates:,} updates"
        return f"{self.minutes:g} min of training"


@dataclass(frozen=True)
class RungResult:
    """The result of a rung."""

    name: str
    title: str
    parameters: int
    seconds: float  # training (or counting) time, without evaluation
    updates: int  # updates done; 0 for a model that is counted
    tokens: int  # tokens trained on, over all epochs
    bits_per_character: float  # of the held-back text
    perplexity: float  # per token, of the held-back text
    sample: str  # how the model continues `Ladder.prompt`
    folder: str


@dataclass(frozen=True)
class Ladder:
    """The results of all rungs."""

    corpus: str
    level: str
    budget: str
    seed: int
    vocabulary: int
    characters: int
    held_back: int  # characters measured on
    prompt: str  # beginning of the held-back text, which the samples continue
    environment: dict[str, str]
    rungs: tuple[RungResult, ...]  # oldest model first

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class RungNote:
    """A note in the folder of a ladder, by which a finished rung is not climbed again."""

    settings: Mapping[str, Any]
    updates: int | None = None  # None before that is known
    result: RungResult | None = None  # None before it is finished

    def write(self, path: Path) -> None:
        """Write the note; raises RunError if that fails."""
        try:
            make_folder(path.parent)
            atomic_text(path, json.dumps(asdict(self), ensure_ascii=False, indent=2) + "\n")
        except OSError as error:
            raise not_writable(path, "--out FOLDER", error) from None

    @classmethod
    def read(cls, path: Path) -> RungNote | None:
        """Read a note; None if there is none or it is damaged, so that the rung is climbed."""
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
            result = None if known["result"] is None else RungResult(**known["result"])
            return cls(dict(known["settings"]), known["updates"], result)
        except (OSError, ValueError, KeyError, TypeError):
            return None


class Climb:
    """Trains the rungs of a ladder one after the other, keeping what is finished.

    Raises:
        PretuneError: the text cannot be read or is too short, or the folder holds something else.
    """

    def __init__(
        self,
        options: LadderOptions,
        *,
        quiet: bool = False,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.options, self.quiet, self.say = options, quiet, say
        _refuse_foreign(options.output)
        self.device = choose_device(options.device)
        # One split for all rungs: the last tenth of the text is held back.
        train, held_out = read_data(Recipe.of({"task": "causal_lm", "data": self._data()}))
        if isinstance(train, StoredDocuments) or isinstance(held_out, StoredDocuments):
            raise DataError(
                f"{options.corpus}: a prepared corpus has tokens of one vocabulary",
                "Give the texts it was made of: the rungs share a vocabulary of their own.",
            )
        assert held_out is not None  # noqa: S101 - a share of a text is never nothing
        self.train, self.held_out = _texts(train), _texts(held_out)
        self.records = train, held_out
        # Of a very short text nothing but spaces might be held back.
        characters = sum(map(len, self.train)) + sum(map(len, self.held_out))
        if characters < MIN_CHARACTERS or not any(text.strip() for text in self.held_out):
            raise DataError(
                f"{options.corpus}: {characters:,} characters are too few for a ladder",
                f"Give it at least {MIN_CHARACTERS:,}; a book is better.",
            )
        self.prompt = next(text for text in self.held_out if text.strip())[:PROMPT_LENGTH]

    def run(self) -> Ladder:
        """Climb all rungs.

        Raises:
            PretuneError: a folder cannot be written, or a training went wrong.
            Interrupted: a training was stopped; the same call continues it.
        """
        options, results = self.options, []
        # All rungs share a tokenizer, so that their perplexities can be compared too.
        tokenizer = self._tokenizer()
        chosen = [name for name in RUNGS if name in options.rungs]
        for number, name in enumerate(chosen, start=1):
            self.say(f"rung {number} of {len(chosen)}: {RUNGS[name].title}")
            results.append(self._rung(name, tokenizer))
        return Ladder(
            corpus=options.corpus,
            level=options.level,
            budget=options.budget,
            seed=options.seed,
            vocabulary=tokenizer.vocab_size,
            characters=sum(map(len, self.train)),
            held_back=sum(map(len, self.held_out)),
            prompt=self.prompt,
            environment=environment(self.device),
            rungs=tuple(results),
        )

    def _tokenizer(self) -> Tokenizer:
        """Train the tokenizer on the training text; with `char` it knows all characters."""
        options, folder = self.options, self.options.output / "tokenizer"
        if options.level == "char":
            made = train_tokenizer(self.train, "char", unknown=False, characters_of=self.held_out)
        else:
            made = train_tokenizer(self.train, "bpe", options.vocab_size)
        with _replaced(folder) as place:
            save_trained(made, place)
        return load_tokenizer(folder)

    def _rung(self, name: str, tokenizer: Tokenizer) -> RungResult:
        """Keep a finished rung, continue an unfinished one, or begin it."""
        path, settings = self.options.output / NOTES / f"{name}.json", self._settings(name)
        folder = self.options.output / name
        known = RungNote.read(path)
        if known is not None and known.settings != settings:
            self.say("  the settings or the text changed: anew")
            known = None
        if known is not None and known.result is not None and folder.is_dir():
            self.say(f"  kept: {known.result.bits_per_character:.3f} bits per character")
            return known.result
        if RUNGS[name].start is None:
            result = self._counted(name, tokenizer, folder)
        else:
            # The number of updates is noted before they start: a stopped rung keeps its budget.
            started = known is not None and (folder / RECIPE).is_file()
            if known is None or known.updates is None:
                known = RungNote(settings, self._updates(name))
                known.write(path)
            result = self._trained(name, folder, known.updates or 1, started=started)
        RungNote(settings, result.updates, result).write(path)
        self.say(f"  {result.bits_per_character:.3f} bits per character, {result.seconds:.1f} s")
        return result

    def _settings(self, name: str) -> dict[str, Any]:
        """Collect everything that a rung depends on: if anything changes, it is climbed anew."""
        options, digest = self.options, hashlib.sha256()
        # The empty text marks the split, so that the same text split elsewhere differs.
        for text in (*self.train, "", *self.held_out):
            digest.update(text.encode() + b"\0")
        counted = RUNGS[name].start is None
        return {
            "text": digest.hexdigest(),
            "level": options.level,
            "vocab_size": options.vocab_size if options.level == "bpe" else None,
            "minutes": options.minutes,
            "updates": options.updates,
            "order": ORDERS[options.level] if counted else None,
            "recipe": None if counted else self._recipe(name, 1).to_dict(),
        }

    def _recipe(self, name: str, updates: int) -> Recipe:
        """Write the recipe of a neural rung: small models without dropout, a cosine schedule."""
        rung, options = RUNGS[name], self.options
        return Recipe.of(
            {
                "description": f"{rung.title}, a rung of a ladder",
                # A preset, with the sizes of the rung.
                "task": {"name": "causal_lm", "max_length": rung.block},
                "model": {
                    "from": rung.start,
                    "tokenizer": str(options.output / "tokenizer"),
                    "config": dict(rung.config or {}),
                    "dropout": 0.0,
                    "attention_dropout": 0.0 if name == "gpt" else None,
                },
                "data": self._data(),
                # Every rung sees the same number of tokens in each update.
                "train": {
                    "max_steps": updates,
                    "batch_size": UPDATE_TOKENS // rung.block,
                    "learning_rate": rung.rate,
                    "schedule": "cosine",
                    "warmup": 0.05,
                    "eval_every": max(1, math.ceil(updates / EVALUATIONS)),
                    "device": options.device,
                },
                "output": str(options.output / name),
                "seed": options.seed,
            }
        )

    def _data(self) -> dict[str, Any]:
        """Write the data section of a recipe; a text may be of any length."""
        return {"train": self.options.corpus, "validation": HELD_BACK, "max_chars": sys.maxsize}

    def _updates(self, name: str) -> int:
        """Return the updates of a rung: as asked for, or as many as fit in the time."""
        options = self.options
        if options.updates is not None:
            return options.updates
        speed = measure_speed(self._recipe(name, 1000))
        seconds = 60 * (options.minutes or 0.0)
        updates = max(1, round(seconds * speed.training_tokens_per_second / UPDATE_TOKENS))
        self.say(f"  {updates:,} updates fit in {options.minutes:g} minutes")
        return updates

    def _trained(self, name: str, folder: Path, updates: int, *, started: bool) -> RungResult:
        """Train a neural model, or continue its training, and let it write a sample."""
        # A stopped training continues exactly where it was.
        if started:
            run = resume(folder, quiet=self.quiet)
        else:
            run = train_recipe(self._recipe(name, updates), overwrite=True, quiet=self.quiet)
        bundle = load(folder)
        return RungResult(
            name=name,
            title=RUNGS[name].title,
            parameters=sum(parameter.numel() for parameter in bundle.model.parameters()),
            seconds=run.seconds,
            updates=run.steps,
            tokens=run.tokens,
            bits_per_character=run.metrics["bits_per_character"],
            perplexity=run.metrics["perplexity"],
            sample=self._sample(TextGenerator.of(bundle, device=self.options.device)),
            folder=run.folder,
        )

    def _counted(self, name: str, tokenizer: Tokenizer, folder: Path) -> RungResult:
        """Count, save and measure the n-gram model."""
        task = CausalLm(CausalLmOptions())
        train, held_out = (record_features(task, records, tokenizer) for records in self.records)
        order, start = ORDERS[self.options.level], time.perf_counter()
        texts = token_texts(train)
        model = NGram.fit(texts, order=order, vocab_size=tokenizer.vocab_size)
        seconds = time.perf_counter() - start
        with _replaced(folder) as place:
            save_ngram(model, place)
            save_trained(tokenizer, place)
        # Measured as it was saved, as the neural models are.
        bits, perplexity = score_ngram(load_ngram(folder), held_out)
        return RungResult(
            name=name,
            title=RUNGS[name].title,
            parameters=len(model.unigrams) + sum(len(level.keys) for level in model.levels),
            seconds=seconds,
            updates=0,
            tokens=sum(map(len, texts)),
            bits_per_character=bits,
            perplexity=perplexity,
            sample=self._sample(TextGenerator(model, tokenizer, device="cpu")),
            folder=str(folder),
        )

    def _sample(self, writer: TextGenerator) -> str:
        decoding = Decoding(max_new_tokens=SAMPLE_LENGTH, stop_tokens=(), seed=self.options.seed)
        (written,) = writer.generate([self.prompt], decoding)
        return written.text[:SAMPLE_LENGTH]


def _refuse_foreign(folder: Path) -> None:
    """Refuse a folder that holds anything but a ladder."""
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder}: is a file, not a folder", "Choose another: --out FOLDER.")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / NOTES).is_dir():
        raise RunError(
            f"{folder}: holds files that are no ladder; nothing is written there",
            "Choose another: --out FOLDER.",
        )


@contextmanager
def _replaced(folder: Path) -> Iterator[Path]:
    """Give a new folder to write into, which then replaces an earlier one as a whole."""
    try:
        make_folder(folder.parent)
        if folder.exists():
            remove_folder(folder)
        with atomic_folder(folder) as place:
            yield place
    except OSError as error:
        raise not_writable(folder, "--out FOLDER", error) from None


def _texts(records: Records) -> list[str]:
    return [records.text(row, "text") for row in range(len(records))]


def token_texts(features: FeatureSet) -> list[list[int]]:
    """Put the tokens of each text together again from its blocks."""
    begins = np.flatnonzero(np.append(True, features.records[1:] != features.records[:-1]))
    texts = []
    for first, after in zip(begins, np.append(begins[1:], len(features)), strict=True):
        start, stop = features.starts[first], features.starts[after]
        # The last token of a text is only ever a target.
        last = features.targets[NEXT][stop - 1]
        texts.append([*features.tokens[start:stop].tolist(), int(last)])
    return texts


def score_ngram(model: NGram, features: FeatureSet) -> tuple[float, float]:
    """Return bits per character and perplexity per token of an n-gram model.

    They are of the tokens that neural models predict too: all but the first of each text.
    """
    nats, tokens = 0.0, 0
    for text in token_texts(features):
        nats -= float(model.logprob(text)[1:].sum())
        tokens += len(text) - 1
    characters = int(features.targets["chars"].sum())
    return nats / math.log(2) / max(characters, 1), math.exp(nats / max(tokens, 1))
