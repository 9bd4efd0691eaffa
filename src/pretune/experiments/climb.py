"""Climbing the ladder of report/ladder.py: training what is not finished yet."""

from __future__ import annotations

import hashlib
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pretune.bundle.bundle import load
from pretune.checkpoints.atomic_io import atomic_folder, make_folder, remove_folder
from pretune.checkpoints.ngram_files import load_ngram, save_ngram
from pretune.corpus.store import StoredDocuments
from pretune.data.batch import FeatureSet
from pretune.data.records import Records
from pretune.decoding.sampling import Decoding
from pretune.errors import DataError, RunError, not_writable
from pretune.experiments.ladder import (
    ORDERS,
    RUNGS,
    Ladder,
    LadderOptions,
    Note,
    RungResult,
)
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
from pretune.training.result import environment
from pretune.training.run import resume, train_recipe
from pretune.training.run_folder import RECIPE

#: Tokens of each update, whatever the rung.
UPDATE_TOKENS = 2048
#: Evaluations of a rung; the best one counts.
EVALUATIONS = 3
#: The share of the text that is held back, and how much of the text a ladder needs.
HELD_BACK, FEWEST_CHARACTERS = 0.1, 1000
#: What each model goes on from, and how far, in its sample.
PROMPT, SAMPLE = 16, 60
#: In the folder: what is known of each rung.
NOTES = "rungs"


class Climb:
    """Trains the rungs of a ladder, one after the other; what is finished is kept.

    Args:
        options: what to climb.
        quiet: show no progress of the trainings.
        say: is told what is done.

    Raises:
        PretuneError: text that cannot be read, or is too short.
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
        train, held_out = read_data(Recipe.of({"task": "causal_lm", "data": self._data()}))
        if isinstance(train, StoredDocuments) or isinstance(held_out, StoredDocuments):
            raise DataError(
                f"{options.corpus}: a prepared corpus has tokens of one vocabulary",
                "Give the texts it was made of: the rungs share a vocabulary of their own.",
            )
        assert held_out is not None  # noqa: S101 - a share of a text always is something
        self.train, self.held_out = _texts(train), _texts(held_out)
        self.records = train, held_out
        characters = sum(map(len, self.train)) + sum(map(len, self.held_out))
        if characters < FEWEST_CHARACTERS or not any(text.strip() for text in self.held_out):
            raise DataError(
                f"{options.corpus}: {characters:,} characters are too few for a ladder",
                f"Give it at least {FEWEST_CHARACTERS:,}; a book is better.",
            )
        self.prompt = next(text for text in self.held_out if text.strip())[:PROMPT]

    def run(self) -> Ladder:
        """Climb.

        Raises:
            PretuneError: a folder that cannot be written, a training that went wrong.
            Interrupted: somebody stopped a training; the same call goes on.
        """
        tokenizer = self._tokenizer()
        found = []
        chosen = [name for name in RUNGS if name in self.options.rungs]
        for number, name in enumerate(chosen, start=1):
            self.say(f"rung {number} of {len(chosen)}: {RUNGS[name].title}")
            found.append(self._rung(name, tokenizer))
        options = self.options
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
            rungs=tuple(found),
        )

    def _tokenizer(self) -> Tokenizer:
        """Learned from what is trained on; in `char` the characters of all of it are known."""
        options, folder = self.options, self.options.output / "tokenizer"
        if options.level == "char":
            made = train_tokenizer(self.train, "char", unknown=False, characters_of=self.held_out)
        else:
            made = train_tokenizer(self.train, "bpe", options.vocab_size)
        try:
            make_folder(options.output)
            if folder.exists():
                remove_folder(folder)
            with atomic_folder(folder) as aside:
                save_trained(made, aside)
        except OSError as error:
            raise not_writable(folder, "--out FOLDER", error) from None
        return load_tokenizer(folder)

    def _rung(self, name: str, tokenizer: Tokenizer) -> RungResult:
        """Keep it, go on with it, or begin it."""
        path, settings = self.options.output / NOTES / f"{name}.json", self._settings(name)
        folder = self.options.output / name
        known = Note.read(path)
        if known is not None and known.settings != settings:
            self.say("  the settings or the text changed: anew")
            known = None
        if known is not None and known.result is not None and folder.is_dir():
            self.say(f"  kept: {known.result.bits_per_character:.3f} bits per character")
            return known.result
        if RUNGS[name].start is None:
            found = self._counted(name, tokenizer, folder)
        else:
            going_on = known is not None and (folder / RECIPE).is_file()
            if known is None or known.updates is None:
                known = Note(settings, self._updates(name))
                known.write(path)
            found = self._trained(name, folder, known.updates or 1, going_on=going_on)
        Note(settings, found.updates, found).write(path)
        self.say(f"  {found.bits_per_character:.3f} bits per character, {found.seconds:.1f} s")
        return found

    def _settings(self, name: str) -> dict[str, Any]:
        """All that a rung depends on: if it changes, the rung is climbed anew."""
        options, digest = self.options, hashlib.sha256()
        for text in (*self.train, "", *self.held_out):
            digest.update(text.encode() + b"\0")
        return {
            "text": digest.hexdigest(),
            "level": options.level,
            "vocab_size": options.vocab_size if options.level == "bpe" else None,
            "minutes": options.minutes,
            "updates": options.updates,
            "order": ORDERS[options.level] if RUNGS[name].start is None else None,
            "recipe": None if RUNGS[name].start is None else self._recipe(name, 1).to_dict(),
        }

    def _recipe(self, name: str, updates: int) -> Recipe:
        """The recipe of a neural rung."""
        rung, options = RUNGS[name], self.options
        return Recipe.of(
            {
                "description": f"{rung.title}, a rung of a ladder",
                "task": {"name": "causal_lm", "max_length": rung.block},
                "model": {
                    "from": rung.start,
                    "tokenizer": str(options.output / "tokenizer"),
                    "config": dict(rung.config or {}),
                    "dropout": 0.0,
                    "attention_dropout": 0.0 if name == "gpt" else None,
                },
                "data": self._data(),
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
        """A text may be as long as it is."""
        return {"train": self.options.corpus, "validation": HELD_BACK, "max_chars": sys.maxsize}

    def _updates(self, name: str) -> int:
        """As many as asked for, or as fit in the time, by the pace of a few."""
        options = self.options
        if options.updates is not None:
            return options.updates
        speed = measure_speed(self._recipe(name, 1000))
        seconds = 60 * (options.minutes or 0.0)
        updates = max(1, round(seconds * speed.training_tokens_per_second / UPDATE_TOKENS))
        self.say(f"  {updates:,} updates fit in {options.minutes:g} minutes")
        return updates

    def _trained(self, name: str, folder: Path, updates: int, *, going_on: bool) -> RungResult:
        if going_on:
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

    def _sample(self, writer: TextGenerator) -> str:
        decoding = Decoding(max_new_tokens=SAMPLE, stop_tokens=(), seed=self.options.seed)
        (written,) = writer.generate([self.prompt], decoding)
        return written.text[:SAMPLE]

    def _counted(self, name: str, tokenizer: Tokenizer, folder: Path) -> RungResult:
        """The n-gram model: nothing is trained, so this is all there is to it."""
        task = CausalLm(CausalLmOptions())
        train, held_out = (record_features(task, records, tokenizer) for records in self.records)
        order, start = ORDERS[self.options.level], time.perf_counter()
        texts = token_texts(train)
        model = NGram.fit(texts, order=order, vocab_size=tokenizer.vocab_size)
        seconds = time.perf_counter() - start
        try:
            if folder.exists():
                remove_folder(folder)
            with atomic_folder(folder) as aside:
                save_ngram(model, aside)
                save_trained(tokenizer, aside)
        except OSError as error:
            raise not_writable(folder, "--out FOLDER", error) from None
        bits, perplexity = measure(load_ngram(folder), held_out)
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


def _refuse_foreign(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder}: is a file, not a folder", "Choose another: --out FOLDER.")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / NOTES).is_dir():
        raise RunError(
            f"{folder}: holds files that are no ladder; nothing is written there",
            "Choose another: --out FOLDER.",
        )


def _texts(records: Records) -> list[str]:
    return [records.text(row, "text") for row in range(len(records))]


def token_texts(features: FeatureSet) -> list[list[int]]:
    """The tokens of each text, put together again from its blocks."""
    begins = np.flatnonzero(np.append(True, features.records[1:] != features.records[:-1]))
    texts = []
    for first, after in zip(begins, np.append(begins[1:], len(features)), strict=True):
        start, stop = features.starts[first], features.starts[after]
        last = features.targets[NEXT][stop - 1]
        texts.append([*features.tokens[start:stop].tolist(), int(last)])
    return texts


def measure(model: NGram, features: FeatureSet) -> tuple[float, float]:
    """Bits for each character and perplexity a token, of what the neural models foretell too.

    That is all but the first token of each text.
    """
    nats, tokens = 0.0, 0
    for text in token_texts(features):
        nats -= float(model.logprob(text)[1:].sum())
        tokens += len(text) - 1
    characters = int(features.targets["chars"].sum())
    return nats / math.log(2) / max(characters, 1), math.exp(nats / max(tokens, 1))
