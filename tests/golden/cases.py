"""Tiny data and tiny trainings for every task; what the golden record and the fixtures share."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_ARTICLES = ["the", "a", "one", "no"]
_NOUNS = ["parcel", "invoice", "account", "film", "dog", "harbour"]
_VERBS = ["is", "was", "arrived", "broke", "left", "sings"]
_WORDS = ["late", "good", "bad", "wrong", "blue", "loud"]
_GERMAN = {
    **dict(zip(_ARTICLES, ["der", "ein", "ein", "kein"], strict=True)),
    **dict(zip(_NOUNS, ["Brief", "Beleg", "Konto", "Film", "Hund", "Hafen"], strict=True)),
    **dict(zip(_VERBS, ["ist", "war", "kam", "brach", "ging", "singt"], strict=True)),
    **dict(zip(_WORDS, ["spät", "gut", "schlecht", "falsch", "blau", "laut"], strict=True)),
}
BERT = (
    "{hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 32, "
    "max_position_embeddings: 64}"
)
GPT = "{n_layer: 1, n_embd: 16, n_head: 2, n_positions: 96}"
MARIAN = (
    "{d_model: 16, encoder_layers: 1, decoder_layers: 1, encoder_attention_heads: 2, "
    "decoder_attention_heads: 2, encoder_ffn_dim: 32, decoder_ffn_dim: 32, "
    "max_position_embeddings: 64}"
)
ENCODER = ("model.from=bert-tiny", "model.tokenizer=wordpiece", f"model.config={BERT}")
DECODER = ("model.from=gpt2-small", "model.tokenizer=bpe", f"model.config={GPT}")
#: 10 updates of 4 records; often enough evaluated that best and last may differ.
BRIEF = (
    "train.max_steps=10",
    "train.batch_size=4",
    "train.learning_rate=5e-3",
    "train.log_every=1",
    "train.eval_every=5",
    "train.device=cpu",
    "data.validation=0.25",
)


def words(i: int) -> list[str]:
    """The words of sentence number `i`."""
    return [
        _ARTICLES[i % 4],
        _WORDS[(i // 2) % 6],
        _NOUNS[(i * 5 + i // 6) % 6],
        _VERBS[(i * 7 + i // 3) % 6],
        _WORDS[(i * 11 + i // 2) % 6],
    ]


def sentence(i: int) -> str:
    """Sentence number `i`."""
    return " ".join(words(i))


def _question(i: int, *, may_fail: bool) -> dict[str, Any]:
    context = f"{sentence(i)}. {sentence(i + 3)}. {sentence(i + 8)}."
    answer = " ".join(words(i + 3)[1:3])
    found: dict[str, list[Any]] = {"text": [answer], "answer_start": [context.index(answer)]}
    if may_fail and i % 3 == 0:
        found = {"text": [], "answer_start": []}
    question = f"What {words(i + 3)[3]} {words(i + 3)[4]}?"
    return {"id": f"q{i}", "question": question, "context": context, "answers": found}


def _tags(i: int) -> list[str]:
    return ["O", "B-KIND", "I-KIND", "O", "B-STATE" if i % 2 else "O"]


def _messages(i: int) -> list[dict[str, str]]:
    return [
        {"role": "user", "content": sentence(i)},
        {"role": "assistant", "content": " ".join(words(i + 1)[:3])},
    ]


def rows(kind: str) -> list[dict[str, Any]]:
    """24 records of a task."""
    numbers = range(24)
    if kind == "texts":
        return [{"text": sentence(i), "label": words(i)[4]} for i in numbers]
    if kind == "pairs":
        return [
            {"sentence1": sentence(i), "sentence2": sentence(i + i % 2), "label": i % 2}
            for i in numbers
        ]
    if kind == "multilabel":
        return [{"text": sentence(i), "labels": words(i)[1:3]} for i in numbers]
    if kind == "scores":
        return [{"text": sentence(i), "score": len(sentence(i)) % 7 / 2} for i in numbers]
    if kind == "choices":
        return [
            {"context": sentence(i), "choices": [words(i + 1)[4], words(i)[4]], "label": 1 - i % 2}
            for i in numbers
        ]
    if kind == "tags":
        return [{"tokens": words(i), "ner_tags": _tags(i)} for i in numbers]
    if kind in ("questions", "questions2"):
        return [_question(i, may_fail=kind == "questions2") for i in numbers]
    if kind == "dialogues":
        return [{"turns": [sentence(i), sentence(i + 1), sentence(i + 2)]} for i in numbers]
    if kind == "messages":
        return [{"messages": _messages(i)} for i in numbers]
    if kind == "translations":
        return [
            {"de": " ".join(_GERMAN[word] for word in words(i)), "en": sentence(i)} for i in numbers
        ]
    if kind == "documents":
        return [
            {"text": " ".join(f"{sentence(7 * i + j).capitalize()}." for j in range(6))}
            for i in numbers
        ]
    raise ValueError(kind)


KINDS = (
    "texts",
    "pairs",
    "multilabel",
    "scores",
    "choices",
    "tags",
    "questions",
    "questions2",
    "dialogues",
    "messages",
    "translations",
    "documents",
)


def write_data(folder: Path) -> None:
    """All data files, and a text for tokenizers and language models."""
    folder.mkdir(parents=True, exist_ok=True)
    for kind in KINDS:
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows(kind)]
        (folder / f"{kind}.jsonl").write_text("".join(lines), encoding="utf-8")
    text = "".join(
        f"{sentence(i).capitalize()}.{' ' if i % 3 else chr(10)}{chr(10) if i % 9 == 0 else ''}"
        for i in range(160)
    )
    (folder / "text.txt").write_text(text, encoding="utf-8")
    german = "".join(f"{row['de']}\n{row['en']}\n" for row in rows("translations"))
    (folder / "both.txt").write_text(german, encoding="utf-8")
    table = "".join(f"{sentence(i)}\t{words(i)[4]}\n" for i in range(24))
    (folder / "texts.tsv").write_text("text\tlabel\n" + table, encoding="utf-8")


TOKENIZERS = {
    "wordpiece": ("data/text.txt", "--kind", "wordpiece", "--vocab-size", "120"),
    "bpe": ("data/text.txt", "--kind", "bpe", "--vocab-size", "290"),
    "both": ("data/both.txt", "--kind", "bpe", "--vocab-size", "290"),
    "char": ("data/text.txt", "--kind", "char", "--json"),
}
CORPORA = {
    "corpus-bpe": ("data/text.txt", "--tokenizer", "bpe", "--validation", "0.2"),
    "corpus-wordpiece": (
        *("data/documents.jsonl", "--tokenizer", "wordpiece", "--shard-tokens", "400"),
        *("--near-duplicates", "0.9"),
    ),
}


@dataclass(frozen=True)
class Run:
    """A training and what its model can be asked.

    Attributes:
        recipe: what `pretune train` begins with: a built-in recipe, a data file or a YAML file.
        changes: `key=value` of it, besides `BRIEF` and the output.
        data: what it is evaluated on.
        ask: the words of `pretune predict`; none: it cannot be asked.
        asked: what `pretune.predict` is asked; none: `ask`.
        uses: the other commands: `generate`, `chat`, `prompt`, `embed`.
    """

    recipe: str
    changes: Sequence[str]
    data: str
    ask: Sequence[str] = ("the late parcel arrived", "no good film")
    asked: Sequence[Any] | None = None
    uses: Sequence[str] = field(default=())


def _task(name: str, *options: str) -> str:
    listed = ", ".join([f"name: {name}", *options])
    return f"task={{{listed}}}"


_QA = ("--question", "What was bad?", "--context", "A dog was bad. One film left.", "--top-k", "2")
_QA_API = [{"question": "What was bad?", "context": "A dog was bad. One film left."}]
_LM = ("embed", "generate", "prompt")
RUNS = {
    "classify": Run(
        "data/texts.jsonl", ("task.max_length=32", *ENCODER), "data/texts.tsv", uses=("embed",)
    ),
    "pairs": Run(
        "data/pairs.jsonl",
        (_task("classify", "pair: true", "max_length: 48"), *ENCODER),
        "data/pairs.jsonl",
        ("a dog sings", "the dog sings"),
        [("a dog sings", "the dog sings")],
    ),
    "multilabel": Run(
        "data/multilabel.jsonl",
        (_task("multilabel", "max_length: 32"), *ENCODER),
        "data/multilabel.jsonl",
    ),
    "regress": Run(
        "data/scores.jsonl", (_task("regress", "max_length: 32"), *ENCODER), "data/scores.jsonl"
    ),
    "choose": Run(
        "data/choices.jsonl",
        (_task("choose", "max_length: 32"), *ENCODER),
        "data/choices.jsonl",
        (),
        [{"context": "the dog is", "choices": ["late", "loud", "blue"]}],
    ),
    "tag": Run(
        "data/tags.jsonl",
        (_task("tag", "max_length: 16", "overlap: 4"), *ENCODER),
        "data/tags.jsonl",
    ),
    "tag-crf": Run(
        "data/tags.jsonl",
        (_task("tag", "max_length: 16", "overlap: 4", "crf: true"), *ENCODER),
        "data/tags.jsonl",
    ),
    "answer": Run(
        "data/questions.jsonl",
        (_task("answer", "max_length: 32", "doc_stride: 8", "max_question_length: 12"), *ENCODER),
        "data/questions.jsonl",
        _QA,
        _QA_API,
    ),
    "answer-none": Run(
        "squad2",
        (
            *("task.max_length=32", "task.doc_stride=8", "task.max_question_length=12", *ENCODER),
            "data.train=data/questions2.jsonl",
        ),
        "data/questions2.jsonl",
        _QA,
        _QA_API,
    ),
    "mask": Run(
        "data/texts.jsonl",
        (_task("mask_lm", "max_length: 32", "mask: words"), *ENCODER),
        "data/texts.jsonl",
        ("the [MASK] parcel arrived",),
        uses=("embed",),
    ),
    "mask-nsp": Run(
        "bert-pretrain",
        (
            *("task.max_length=48", "data.train=data/documents.jsonl", "model.from=bert-tiny"),
            *("model.tokenizer=wordpiece", f"model.config={BERT}", "train.ema=0.9"),
        ),
        "data/documents.jsonl",
        ("the [MASK] parcel arrived",),
    ),
    "causal": Run(
        "language.yaml",
        (_task("causal_lm", "max_length: 32"), *DECODER),
        "data/text.txt",
        uses=_LM,
    ),
    "novel": Run(
        "novel",
        (
            *("data.train=data/text.txt", "model.train_tokenizer.vocab_size=280"),
            *("task.max_length=32", f"model.config={GPT}"),
        ),
        "data/text.txt",
        uses=("generate",),
    ),
    "nnlm": Run(
        "language.yaml",
        (
            *(_task("causal_lm", "max_length: 16", "boundaries: false"), "model.from=nnlm"),
            "model.config={order: 3, embedding_size: 8, hidden_size: 16}",
            "model.tokenizer=bpe",
        ),
        "data/text.txt",
        uses=("generate",),
    ),
    "lstm-carried": Run(
        "language.yaml",
        (
            _task("causal_lm", "max_length: 16", "boundaries: false", "carry_state: true"),
            *("model.from=lstm-small", "model.config={embedding_size: 16, hidden_size: 16}"),
            "model.tokenizer=char",
        ),
        "data/text.txt",
        uses=("generate",),
    ),
    "chat": Run(
        "data/dialogues.jsonl",
        (_task("chat", "max_length: 48", "max_new_tokens: 6", "samples: 4"), *DECODER),
        "data/dialogues.jsonl",
        uses=("chat", "generate"),
    ),
    "instruct": Run(
        "data/messages.jsonl",
        (
            _task("instruct", "max_length: 80", "max_new_tokens: 6", "template: chatml")[:-1]
            + ", samples: 4}",
            *DECODER,
            'model.new_tokens=["<|im_start|>", "<|im_end|>"]',
        ),
        "data/messages.jsonl",
        uses=("chat", "generate"),
    ),
    "translate": Run(
        "translate",
        (
            *("data.train=data/translations.jsonl", "train.batch_tokens=null"),
            *("model.train_tokenizer=null", "model.tokenizer=both", f"model.config={MARIAN}"),
            *("task.max_length=32", "train.warmup=4", "train.ema=0.9"),
        ),
        "data/translations.jsonl",
        ("der Hund ist laut",),
    ),
    "gpt-stored": Run(
        "language.yaml",
        (
            _task("causal_lm", "max_length: 32", "boundaries: false"),
            *("data.train=corpus-bpe", "data.validation=corpus-bpe/validation"),
            *("model.from=gpt2-small", f"model.config={GPT}"),
        ),
        "corpus-bpe/validation",
        uses=("generate",),
    ),
    "bert-stored": Run(
        "bert-pretrain",
        (
            *("task.max_length=48", "data.train=corpus-wordpiece", "data.validation=null"),
            *("model.from=bert-tiny", f"model.config={BERT}"),
        ),
        "corpus-wordpiece",
        ("the [MASK] parcel arrived",),
    ),
    "lora": Run(
        "language.yaml",
        (
            *(_task("causal_lm", "max_length: 32"), "model.from=runs/causal"),
            "train.lora={rank: 2, alpha: 4}",
        ),
        "data/text.txt",
        uses=("generate",),
    ),
    "guarded": Run(
        "data/texts.jsonl",
        (
            *("task.max_length=32", *ENCODER, "train.schedule=cosine", "train.learning_rate=5e-2"),
            "train.guard={action: rollback, spikes: true, window: 8, threshold: 1.5, give_up: 50}",
            "train.max_steps=24",
            *("train.ema=0.9", "train.accumulate=2", "train.layer_decay=0.9", "train.save_every=2"),
            *("model.dropout=0.0", "task.label_smoothing=0.1", "train.freeze=embeddings"),
        ),
        "data/texts.jsonl",
    ),
    "yaml": Run("recipe.yaml", (), "data/texts.jsonl"),
}
#: The files that some are trained by.
LANGUAGE_FILE = """\
task: {name: causal_lm}
data: {train: data/text.txt, validation: 0.25}
"""
RECIPE_FILE = f"""\
description: A small one
task: {{name: classify, max_length: 24, class_weights: auto, focal_gamma: 1.0}}
model: {{from: bert-tiny, tokenizer: wordpiece, config: {BERT}}}
data: {{train: data/texts.tsv, validation: 0.25}}
train: {{batch_tokens: 40, batch_ramp: {{start: 8, updates: 4}}, schedule: wsd, patience: 3}}
"""


def training(name: str, output: str | None = None) -> list[str]:
    """The words after `pretune` that train a run."""
    run = RUNS[name]
    given = {change.partition("=")[0]: change for change in BRIEF}
    if name == "yaml":
        del given["train.batch_size"]
    if name == "translate":
        given = {"train.batch_tokens": "train.batch_tokens=null", **given}
    given |= {change.partition("=")[0]: change for change in run.changes}
    return ["train", run.recipe, *given.values(), f"output={output or f'runs/{name}'}"]
