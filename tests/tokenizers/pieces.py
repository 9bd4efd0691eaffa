"""Small SentencePiece models, trained by its own package, in the layouts that families publish."""

from __future__ import annotations

import io
import random
from functools import lru_cache
from typing import Any

import sentencepiece

WORDS = "the a of cat dog house runs sleeps walked quickly green and then went home again it's"
CHINESE = "我们 今天 去 学校 学习 自然 语言 处理 ， 明天 再 来 吧 。 他 说 电影 很 好看"
TURKISH = "İstanbul'da güneşli bir gün naïve café Straße ﬁne ½ ① ｆｕｌｌ …"
#: How families train their models: the numbers of special pieces, and what they are called.
LAYOUTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "t5": {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1},
    "albert": {
        "pad_id": 0,
        "unk_id": 1,
        "bos_id": -1,
        "eos_id": -1,
        "control_symbols": ["[CLS]", "[SEP]", "[MASK]"],
        "normalization_rule_name": "nfkc",
    },
    "deberta": {
        "pad_id": 0,
        "bos_id": 1,
        "eos_id": 2,
        "unk_id": 3,
        "pad_piece": "[PAD]",
        "bos_piece": "[CLS]",
        "eos_piece": "[SEP]",
        "unk_piece": "[UNK]",
    },
    "llama": {
        "model_type": "bpe",
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "split_digits": True,
        "remove_extra_whitespaces": False,
        "vocab_size": 600,
    },
}


def lines(count: int = 600) -> list[str]:
    """Made-up sentences, always the same."""
    random_ = random.Random(0)
    words = (WORDS + " " + TURKISH).split()
    english = [" ".join(random_.choices(words, k=random_.randint(3, 12))) for _ in range(count)]
    chinese = ["".join(random_.choices(CHINESE.split(), k=8)) for _ in range(count // 3)]
    return english + chinese


@lru_cache
def spm_bytes(layout: str, **options: Any) -> bytes:
    """The file of a model of a layout; `options` go before those of the layout."""
    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(lines()),
        model_writer=made,
        minloglevel=2,
        num_threads=1,
        **{"vocab_size": 300, "hard_vocab_limit": False, **LAYOUTS[layout], **options},
    )
    return made.getvalue()


def processor(data: bytes) -> Any:
    """SentencePiece's own reading of a file."""
    return sentencepiece.SentencePieceProcessor(model_proto=data)
