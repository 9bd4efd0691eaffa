from __future__ import annotations

import json
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
#: ChatML in few tokens.
CHAT = (
    "{% for message in messages %}{{ message.role[0] + '\n' + message.content + eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'a\n' }}{% endif %}"
)


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


def rotary(folder: Path, bpe: Pair, name: str, **sizes: Any) -> Pair:
    """A decoder with rotary positions and shared heads, with random weights.

    It has room for more tokens than `bpe`, the same vocabulary, and a chat template.
    """
    import transformers

    config = getattr(transformers, f"{name}Config")(
        vocab_size=bpe.bundle.tokenizer.vocab_size,
        hidden_size=32,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4 * CONTEXT,
        eos_token_id=bpe.bundle.tokenizer.end_id,
        **sizes,
    )
    with torch.random.fork_rng():
        torch.manual_seed(8)
        model = getattr(transformers, f"{name}ForCausalLM")(config)
        for parameter in model.parameters():
            nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=0.2)
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes((bpe.folder / "tokenizer.json").read_bytes())
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END}
    text = json.dumps({**settings, "chat_template": CHAT})
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")
    return Pair(folder, load(folder), model.eval())


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory, bpe: Pair) -> Pair:
    """A Llama."""
    return rotary(tmp_path_factory.mktemp("llama"), bpe, "Llama", tie_word_embeddings=True)


@pytest.fixture(scope="session")
def mistral(tmp_path_factory: pytest.TempPathFactory, bpe: Pair) -> Pair:
    """A Mistral whose tokens see fewer others than the texts have."""
    return rotary(tmp_path_factory.mktemp("mistral"), bpe, "Mistral", sliding_window=9)
