"""Tokens a second of GPT-2, beside transformers' `generate` with its cache, in one process.

    python bench/generate.py
    python bench/generate.py --batches 1 --new-tokens 256 --modes greedy

Random weights of GPT-2 small's shape (124M): how fast they are does not depend on their values.
Both write exactly as many tokens, and the prompt is part of the time; the rounds take turns, so
that what else the machine does falls on both; the median of each is compared. "ragged" are prompts
of different lengths: transformers pads them on the left.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer as RustTokenizer
from tokenizers.models import WordLevel

sys.path.insert(0, str(Path(__file__).parent))
from machine import parse, table

from pretune.checkpoints.config import read_config
from pretune.checkpoints.load import load_into
from pretune.checkpoints.open import open_weights
from pretune.decoding.decoding import Decoding
from pretune.inference.generate import TextGenerator
from pretune.models.families import FAMILIES
from pretune.tokenizers.tokenizer import Tokenizer

MODES: dict[str, tuple[Decoding, dict[str, Any]]] = {
    "greedy": (Decoding(temperature=0, stop_tokens=()), {"do_sample": False}),
    "top-k 40": (
        Decoding(top_k=40, top_p=1.0, stop_tokens=()),
        {"do_sample": True, "top_k": 40, "top_p": 1.0},
    ),
    "beams 4": (Decoding(beams=4, stop_tokens=()), {"do_sample": False, "num_beams": 4}),
}


def build(size: dict[str, int]) -> tuple[TextGenerator, Any]:
    """One set of weights, ours and theirs."""
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(**size)).eval()
    family = FAMILIES["gpt2"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        theirs.save_pretrained(folder)
        config = family.backbone.config_class.from_dict(read_config(folder))
        ours, _ = load_into(
            lambda: family.build(config, "causal_lm"),
            open_weights(folder),
            folder,
            family,
            "causal_lm",
        )
    vocabulary = {f"w{i}": i for i in range(theirs.config.vocab_size)}
    tokenizer = Tokenizer(RustTokenizer(WordLevel(vocabulary, unk_token="w0")), {})  # noqa: S106
    writer = TextGenerator(ours, tokenizer, device="cpu", batch_size=64)  # type: ignore[arg-type]
    return writer, theirs


def prompts_of(count: int, length: int, ragged: bool) -> list[list[int]]:
    """Random prompts; ragged ones of a tenth to all of the length."""
    lengths = [length * (i + 1) // count for i in range(count)] if ragged else [length] * count
    return [torch.randint(100, 1000, (max(1, n),)).tolist() for n in lengths]


def peer(
    theirs: Any,
    prompts: list[list[int]],
    count: int,
    options: dict[str, Any],
    device: str = "cpu",
) -> None:
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)
    with torch.inference_mode():
        found = theirs.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=count,
            min_new_tokens=count,
            pad_token_id=0,
            **options,
        )
    assert found.shape[1] == longest + count  # noqa: S101


def ours(writer: TextGenerator, prompts: list[list[int]], decoding: Decoding) -> None:
    found = writer.generate(prompts, decoding)
    assert all(len(g.tokens) == decoding.max_new_tokens for g in found)  # noqa: S101


def seconds(job: Callable[[], None]) -> float:
    start = time.perf_counter()
    job()
    return time.perf_counter() - start


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--modes", nargs="+", choices=list(MODES), default=list(MODES))
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=12)
    options = parse(parser)
    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    writer, theirs = build({"n_layer": options.layers})
    for batch in options.batches:
        for ragged in (False, True) if batch > 1 else (False,):
            for mode in options.modes:
                prompts = prompts_of(batch, options.prompt_tokens, ragged)
                decoding, theirs_options = MODES[mode]
                decoding = Decoding(**{**vars(decoding), "max_new_tokens": options.new_tokens})
                jobs = {"pretune": partial(ours, writer, prompts, decoding)}
                if not options.ours:
                    jobs["transformers"] = partial(
                        peer, theirs, prompts, options.new_tokens, theirs_options
                    )
                rates: dict[str, list[float]] = {name: [] for name in jobs}
                for i in range(options.rounds + 1):
                    for name, job in jobs.items():
                        rate = batch * options.new_tokens / seconds(job)
                        if i:  # the first round warms up
                            rates[name].append(rate)
                what = f"{mode}, batch {batch}{', ragged' if ragged else ''}"
                print("\n" + table(what, rates, "pretune", "tokens/s", digits=1), flush=True)


if __name__ == "__main__":
    main()
