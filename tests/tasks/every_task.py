"""A tiny model and some labelled records for each task, for what has to work for all of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pretune.bundle.bundle import Bundle, load
from pretune.data.records import Records
from pretune.tasks.alignment.dpo import Dpo, DpoOptions
from pretune.tasks.alignment.grpo import Grpo, GrpoOptions
from pretune.tasks.alignment.ppo import Ppo, PpoOptions
from pretune.tasks.alignment.reward import Reward, RewardOptions
from pretune.tasks.alignment.rloo import Rloo, RlooOptions
from pretune.tasks.base import AnyTask
from pretune.tasks.causal_lm.causal_lm import CausalLm, CausalLmOptions
from pretune.tasks.classification.classify import Classify, ClassifyOptions
from pretune.tasks.classification.multilabel import Multilabel, MultilabelOptions
from pretune.tasks.dialogue.dialogue import Chat, ChatOptions, Instruct, InstructOptions
from pretune.tasks.masked_lm.mask_lm import MaskLm, MaskLmOptions
from pretune.tasks.multiple_choice.choose import Choose, ChooseOptions
from pretune.tasks.question_answering.answer import Answerer, AnswerOptions
from pretune.tasks.regression.regress import Regress, RegressOptions
from pretune.tasks.replaced_token.detect import DetectReplaced, ReplacedTokenOptions
from pretune.tasks.summarization.summarize import Summarize, SummarizeOptions
from pretune.tasks.tagging.tag import Tagger, TagOptions
from pretune.tasks.translation.translate import Translate, TranslateOptions
from pretune.tokenizers.train import train_tokenizer
from tests.tasks.questions import question
from tests.tasks.translations import SIZES

Rows = list[dict[str, Any]]
#: What would like to break a page, as a text of the data.
NASTY = "</script><script>window.broken = true</script><!-- <img src=http://127.0.0.1:9/x>"
TYPES = ["PER", "<b>LOC"]


@dataclass(frozen=True)
class Case:
    """A task and what it can be asked.

    Attributes:
        task: a fresh one.
        rows: labelled records, so many.
        family: of the model.
    """

    task: Callable[[], AnyTask]
    rows: Callable[[int], Rows]
    family: str = "bert"

    def bundle(self, tiny_folder: Path, tmp_path: Path) -> Bundle:
        """The model, with a head of random weights that says something else of each text."""
        torch.manual_seed(0)
        if self.family == "transformer":
            texts = [text for row in self.rows(24) for text in row.values()]
            tokenizer = train_tokenizer(texts, "bpe", 300)
            bundle = load("transformer-small", task=self.task(), tokenizer=tokenizer, config=SIZES)
        else:
            folder = tiny_folder
            if self.family != "bert":
                folder = tmp_path / self.family
                _other_family(self.family, folder, tiny_folder)
            bundle = load(folder, task=self.task())
        with torch.no_grad():
            for name, parameter in bundle.model.named_parameters():
                if not name.startswith("backbone."):
                    parameter.normal_(std=0.3)
        return bundle

    def records(self, count: int = 24) -> Records:
        """Labelled records from the second line of a file on."""
        rows = self.rows(count)
        return Records(rows, "some.jsonl", range(2, len(rows) + 2), tuple(rows[0]))


def _other_family(family: str, folder: Path, tiny_folder: Path) -> None:
    import transformers

    folder.mkdir()
    vocabulary = (tiny_folder / "vocab.txt").read_text(encoding="utf-8")
    (folder / "vocab.txt").write_text(vocabulary, encoding="utf-8")
    size = len(vocabulary.splitlines())
    if family == "gpt2":
        config = transformers.GPT2Config(
            vocab_size=size, n_embd=32, n_layer=1, n_head=2, n_positions=64
        )
        with torch.random.fork_rng():
            torch.manual_seed(0)
            transformers.GPT2LMHeadModel(config).save_pretrained(folder)
        return
    raise ValueError(family)


def _text(i: int) -> str:
    return NASTY if i == 3 else f"{'the good ' * (i % 5)}film {'bad ' * (i % 2)}{i}好"


def _texts(name: str, label: Callable[[int], Any]) -> Callable[[int], Rows]:
    return lambda count: [{"text": _text(i), name: label(i)} for i in range(count)]


def _questions(last: str) -> Callable[[int], Rows]:
    answers = ["good film", "China", "bad film was", last]
    return lambda count: [question(answers[i % 4], number=str(i)) for i in range(count)]


def _sentences(count: int) -> Rows:
    words = ["good", "film", "x", "un", "好", NASTY.split()[0]]
    tags = ["B-PER", "I-PER", "O", "B-<b>LOC", "O", "B-PER"]
    return [
        {"tokens": (words * 3)[: 3 + i % 9], "ner_tags": (tags * 3)[: 3 + i % 9]}
        for i in range(count)
    ]


def _choices(count: int) -> Rows:
    return [
        {"context": _text(i), "choices": ["good", NASTY, "un x"][: 2 + i % 2], "label": i % 2}
        for i in range(count)
    ]


def _turns(i: int) -> list[str]:
    return ["the film?", "good " * (1 + i % 3), "bad?", NASTY if i == 3 else f"no{i}"][: 2 + i % 3]


def _messages(i: int) -> list[dict[str, str]]:
    roles = ["user", "assistant"] * 2
    return [
        {"role": role, "content": text}
        for role, text in zip(roles, _turns(i)[: 2 * (1 + i % 2)], strict=False)
    ][: 2 if i % 2 == 0 or len(_turns(i)) < 4 else 4]


def _pairs(count: int) -> Rows:
    return [
        {
            "messages": [{"role": "user", "content": _text(i)}],
            "completion": f"good {i}",
            "chosen": f"good {i}",
            "rejected": NASTY if i == 5 else "bad " * (1 + i % 4),
        }
        for i in range(count)
    ]


#: A policy without a reference: evaluations would have to find it.
POLICY: dict[str, Any] = {
    "max_length": 48,
    "max_new_tokens": 4,
    "samples": 30,
    "reward": {"length": 9},
    "beta": 0.0,
    "reference": None,
}
LABELS = ["good", "<i>bad", "好"]
CASES = {
    "classify": Case(
        lambda: Classify(ClassifyOptions(max_length=32), LABELS),
        _texts("label", lambda i: LABELS[i % 3]),
    ),
    "multilabel": Case(
        lambda: Multilabel(MultilabelOptions(max_length=32), LABELS),
        _texts("labels", lambda i: LABELS[: i % 4]),
    ),
    "regress": Case(
        lambda: Regress(RegressOptions(max_length=32)), _texts("score", lambda i: i % 7 / 2)
    ),
    "choose": Case(lambda: Choose(ChooseOptions(max_length=32)), _choices),
    "tag": Case(
        lambda: Tagger(
            TagOptions.of_length(12, "bio", crf=False),
            ["O", *(f"{letter}-{kind}" for kind in TYPES for letter in "BI")],
        ),
        _sentences,
    ),
    "tag_crf": Case(
        lambda: Tagger(
            TagOptions.of_length(12, "bio", crf=True),
            ["O", *(f"{letter}-{kind}" for kind in TYPES for letter in "BI")],
        ),
        _sentences,
    ),
    "answer": Case(lambda: Answerer(AnswerOptions.of_length(32)), _questions("中国")),
    "answer_none": Case(
        lambda: Answerer(AnswerOptions.of_length(32, no_answer=True), -1e3), _questions("")
    ),
    "mask_lm": Case(
        lambda: MaskLm(MaskLmOptions(max_length=16, evaluate="masked")), _texts("n", lambda i: i)
    ),
    "mask_lm_each": Case(
        lambda: MaskLm(MaskLmOptions(max_length=16, evaluate="each")), _texts("n", lambda i: i)
    ),
    "mask_lm_pairs": Case(
        lambda: MaskLm(MaskLmOptions(max_length=32, next="nsp", evaluate="masked")),
        lambda count: [{"text": f"{_text(i)} good. The bad. Un. film x."} for i in range(count)],
    ),
    "replaced_token": Case(
        lambda: DetectReplaced(ReplacedTokenOptions(max_length=16)), _texts("n", lambda i: i)
    ),
    "causal_lm": Case(
        lambda: CausalLm(CausalLmOptions(max_length=16)), _texts("n", lambda i: i), "gpt2"
    ),
    "chat": Case(
        lambda: Chat(ChatOptions(max_length=48, max_new_tokens=4, temperature=0)),
        lambda count: [{"turns": _turns(i)} for i in range(count)],
        "gpt2",
    ),
    "instruct": Case(
        lambda: Instruct(InstructOptions(max_length=48, max_new_tokens=4)),
        lambda count: [{"messages": _messages(i)} for i in range(count)],
        "gpt2",
    ),
    "reward": Case(lambda: Reward(RewardOptions(max_length=32)), _pairs),
    "reward_decoder": Case(lambda: Reward(RewardOptions(max_length=48)), _pairs, "gpt2"),
    "dpo": Case(
        lambda: Dpo(DpoOptions(max_length=48, loss="orpo", reference=None)), _pairs, "gpt2"
    ),
    "ppo": Case(
        lambda: Ppo(PpoOptions(**POLICY)),
        lambda count: [{"messages": _messages(i)[:1]} for i in range(count)],
        "gpt2",
    ),
    "grpo": Case(
        lambda: Grpo(GrpoOptions(**POLICY)),
        lambda count: [{"messages": _messages(i)[:1]} for i in range(count)],
        "gpt2",
    ),
    "rloo": Case(
        lambda: Rloo(RlooOptions(**POLICY)),
        lambda count: [{"messages": _messages(i)[:1]} for i in range(count)],
        "gpt2",
    ),
    "translate": Case(
        lambda: Translate(TranslateOptions(max_length=64, label_smoothing=0.0, beams=1)),
        lambda count: [{"source": _text(i), "target": f"un {_text(i)}"} for i in range(count)],
        "transformer",
    ),
    "summarize": Case(
        lambda: Summarize(SummarizeOptions(max_length=64, label_smoothing=0.0, beams=1)),
        lambda count: [{"document": _text(i), "summary": _text(i)[:6]} for i in range(count)],
        "transformer",
    ),
}


def write(rows: Rows, path: Path) -> Path:
    """As a JSONL file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
