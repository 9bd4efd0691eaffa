from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import ByteLevelBPETokenizer
from torch import nn

from pretune.bundle.bundle import Bundle, load
from pretune.inference.generate import TextGenerator

TEXTS = [
    "The film was good, the film was bad; naïve café — “quotes” and 中国电影 好看 🎬🙂.",
    "Once upon a time there was a small model that wrote small stories.",
    "été señor 東京 Привет мир 👩‍🔬",
]
END = "<|endoftext|>"
CONTEXT = 48


@dataclass(frozen=True)
class Pair:
    """One checkpoint, opened by us and by transformers."""

    folder: Path
    bundle: Bundle
    theirs: Any

    @property
    def writer(self) -> TextGenerator:
        return TextGenerator.of(self.bundle, device="cpu")


def random_gpt2(folder: Path, vocab_size: int, end: int | None) -> Any:
    """Transformers' GPT-2 with random weights, in a folder."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=vocab_size,
        n_positions=CONTEXT,
        n_embd=32,
        n_layer=3,
        n_head=4,
        bos_token_id=end,
        eos_token_id=end,
    )
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = GPT2LMHeadModel(config)
        for name, parameter in model.named_parameters():
            norm = ".ln_" in name and name.endswith("weight")
            nn.init.normal_(parameter, mean=1.0 if norm else 0.0, std=0.15)
    model.save_pretrained(folder)
    return model.eval()


@pytest.fixture(scope="session")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A GPT-2 with a byte-level vocabulary so small that most characters take several tokens."""
    folder = tmp_path_factory.mktemp("gpt2")
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(
        TEXTS * 3, vocab_size=300, min_frequency=2, special_tokens=[END], show_progress=False
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(f'{{"eos_token": "{END}"}}', encoding="utf-8")
    theirs = random_gpt2(folder, tokenizer.get_vocab_size(), tokenizer.token_to_id(END))
    return Pair(folder, load(folder), theirs)


@pytest.fixture(scope="session")
def wordpiece(tmp_path_factory: pytest.TempPathFactory, tiny_vocab_folder: Path) -> Pair:
    """A GPT-2 with a BERT vocabulary, as the Chinese ones have it; no end token in its config."""
    folder = tmp_path_factory.mktemp("gpt2-wordpiece")
    (folder / "vocab.txt").write_bytes((tiny_vocab_folder / "vocab.txt").read_bytes())
    rows = len((folder / "vocab.txt").read_text(encoding="utf-8").split("\n")) - 1
    theirs = random_gpt2(folder, rows, None)
    return Pair(folder, load(folder), theirs)
