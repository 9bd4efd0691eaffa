"""The program that is written beside an ONNX export: it needs onnxruntime and tokenizers alone."""

from __future__ import annotations

import re
from string import Template
from typing import Any

from pretune.bundle.bundle import Bundle
from pretune.export.onnx_models import DECODER, ENCODER, MODEL, Exported
from pretune.export.pieces_example import PIECES
from pretune.inference.prompts import stop_tokens_of
from pretune.tasks.classification.multilabel import Multilabel
from pretune.tasks.long_texts import HEAD_SHARE
from pretune.tasks.question_answering.answer import Answerer
from pretune.tasks.sentences import SentenceTask
from pretune.tasks.translation.rewriting import Rewriting
from pretune.tokenizers.tokenizer import TARGET_FILE

_BEGIN = '''\
"""Runs this model by onnxruntime alone: pip install onnxruntime tokenizers numpy"""
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
from tokenizers import Tokenizer

here = Path(__file__).parent
config = json.loads((here / "config.json").read_text(encoding="utf-8"))
tokenizer = Tokenizer.from_file(str(here / "tokenizer.json"))
'''

_READ = """\
session = ort.InferenceSession(here / "onnx/$model.onnx")
tokenizer.enable_truncation($length)
tokenizer.enable_padding(pad_id=$pad)
texts = sys.argv[1:] or $texts
${split}read = tokenizer.encode_batch($read)
inputs = {
    "input_ids": np.array([line.ids for line in read])$choices,
    "attention_mask": np.array([line.attention_mask for line in read])$choices,
$segments}
"""

#: The same where a model reads more of a long text than its first tokens.
_READ_LONG = """\
session = ort.InferenceSession(here / "onnx/$model.onnx")
texts = sys.argv[1:] or $texts


def sequences(length):
    \"\"\"Which of the tokens of a text each of its sequences has.\"\"\"
    end = length - $after
$parts
        yield [*range($before), *own, *range(end, length)]


lines = tokenizer.encode_batch(texts)
kept = [(number, own) for number, line in enumerate(lines) for own in sequences(len(line.ids))]
longest = max(len(own) for _, own in kept)


def table(name, pad):
    every = [getattr(line, name) for line in lines]
    rows = [[every[number][i] for i in own] for number, own in kept]
    return np.array([row + [pad] * (longest - len(row)) for row in rows])


inputs = {
    "input_ids": table("ids", $pad),
    "attention_mask": table("attention_mask", 0),
$segments}
"""
_HEAD_TAIL = """\
    own = [*range($before, end)]
    if len(own) > $room:
        own = own[:$head] + own[-$tail:]
    for own in (own,):"""
_WINDOWS = """\
    last = $before + max(end - $before - $room, 0)
    for start in [*range($before, last, $step), last][:$most]:
        own = range(start, min(start + $room, end))"""
_POOLED = """\
owners = np.array([number for number, _ in kept])
logits = [logits[owners == number].mean(0) for number in range(len(texts))]
"""

_VECTORS = """\
(vectors,) = session.run(["$vectors"], inputs)
print(vectors @ vectors.T)
"""

_HIDDEN = """\
(vectors,) = session.run(["$vectors"], inputs)
print(vectors.shape)
"""

_LABELS = """\
(logits,) = session.run(["logits"], inputs)
${pooled}for scores in logits:
    print($answer)
"""

_CHOICE = """\
(scores,) = session.run(["logits"], inputs)
print(texts[1 + scores[0].argmax()])
"""

_SPAN = """\
starts, ends = session.run(["start_logits", "end_logits"], inputs)
# The best start and end within the second text, of an answer of at most $longest tokens.
inside = np.array([part == 1 for part in read[0].sequence_ids])
length = np.arange(len(inside)) - np.arange(len(inside))[:, None]
allowed = inside[:, None] & inside & (length >= 0) & (length < $longest)
scores = np.where(allowed, starts[0][:, None] + ends[0], -np.inf)
start, end = np.unravel_index(scores.argmax(), scores.shape)
answer = texts[1][read[0].offsets[start][0] : read[0].offsets[end][1]]
$nothing
print(answer)
"""

#: Where a passage may hold no answer: the first token stands for that.
_NOTHING = """\
if starts[0][0] + ends[0][0] - scores.max() > $threshold:
    answer = ""  # no answer scores more than the best one"""

_TAGS = """\
(logits,) = session.run(["logits"], inputs)
for own, line, scores in zip(words, read, logits):
    first = {word: i for i, word in reversed(list(enumerate(line.word_ids))) if word is not None}
    places = [first[word] for word in sorted(first)]  # a word's label is its first token's
$path
    print(*(f"{w}/{config['id2label'][str(k)]}" for w, k in zip(own, labels)))
"""

_BEST_LABELS = "    labels = scores[places].argmax(-1)"
_BEST_PATH = """\
    crf = json.loads((here / "onnx/crf.json").read_text())
    moves, best, back = np.array(crf["transitions"]), scores[places[0]] + crf["start"], []
    for place in places[1:]:  # Viterbi: the best path that ends in each label
        back.append((best[:, None] + moves).argmax(0))
        best = (best[:, None] + moves).max(0) + scores[place]
    labels = [(best + crf["end"]).argmax()]
    for before in reversed(back):
        labels.insert(0, before[labels[0]])"""

_MASK = """\
(logits,) = session.run(["$logits"], inputs)
for line, scores in zip(read, logits):
    for place in np.flatnonzero(np.array(line.ids) == $mask):
        print([tokenizer.id_to_token(i) for i in scores[place].argsort()[:-6:-1]])
"""

_PAST = """\
past = {
    i.name: np.zeros((1, i.shape[1], 0, i.shape[3]), np.float32)
    for i in session.get_inputs() if i.name.startswith("past_key_values.")
}
"""

_WRITE = (
    """\
session = ort.InferenceSession(here / "onnx/$model.onnx")
read = tokenizer.encode((sys.argv[1:] or $texts)[0])
ids = read.ids
while len(ids) > 1 and ids[-1] in $stops and read.offsets[len(ids) - 1] == (0, 0):
    ids = ids[:-1]  # the end that the tokenizer adds to every text
"""
    + _PAST
    + """\
new, seen = ids, 0
while len(ids) < $length:
    seen += len(new)
    inputs = {
        "input_ids": np.array([new]),
        "attention_mask": np.ones((1, seen), np.int64),
        "position_ids": np.arange(seen - len(new), seen)[None],
    }
    logits, *present = session.run(None, {**inputs, **past})
    past, new = dict(zip(past, present)), [int(logits[0, -1].argmax())]
    if new[0] in $stops:
        break
    ids += new
print(tokenizer.decode(ids))
"""
)

_TRANSLATE = (
    """\
encoder = ort.InferenceSession(here / "onnx/$encoder.onnx")
session = ort.InferenceSession(here / "onnx/$decoder.onnx")
text = (sys.argv[1:] or $texts)[0]
ids = tokenizer.encode($text).ids
ids = np.array([ids if ids[-1:] == [$end] else [*ids, $end]])
inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
source = {"encoder_hidden_states": encoder.run(None, inputs)[0]}
source["encoder_attention_mask"] = inputs["attention_mask"]
"""
    + _PAST
    + """\
end, written = config["eos_token_id"], []
new = config["decoder_start_token_id"]
longest = min($longest, round($ratio * ids.shape[1]) + 10)
while len(written) < longest and written[-1:] != [end]:
    inputs = {"input_ids": np.array([[new]]), "use_cache_branch": np.array([bool(written)])}
    logits, *present = session.run(None, {**inputs, **source, **past})
    logits[..., $never] = -np.inf  # what begins a translation is no part of it
    past, new = dict(zip(past, present)), int(logits[0, -1].argmax())
    written.append(new)
print(Tokenizer.from_file(str(here / "$written")).decode(written).strip())
"""
)

_MARIAN_BEGIN = (
    _BEGIN.replace("onnxruntime tokenizers numpy", "onnxruntime sentencepiece numpy")
    .replace("from tokenizers import Tokenizer\n", "import sentencepiece\n")
    .replace('tokenizer = Tokenizer.from_file(str(here / "tokenizer.json"))\n', "")
    + PIECES
    + """\
numbers, words = (
    json.loads((here / name).read_text(encoding="utf-8")) for name in ("vocab.json", "$written")
)
"""
)
#: The texts of a Marian, where others use a tokenizer: read, and written.
_MARIAN_TEXTS = (
    (
        "tokenizer.encode($text).ids\n",
        "[numbers.get(piece, numbers[$unknown]) for piece in pieces($text)]\n",
    ),
    (
        'print(Tokenizer.from_file(str(here / "$written")).decode(written).strip())\n',
        "known = {number: piece for piece, number in words.items()}\n"
        "print(joined(known[own] for own in written if own != end))\n",
    ),
)

#: What a classifier's outputs stand for, by transformers' `problem_type`.
_ANSWERS = {
    "single_label_classification": 'config["id2label"][str(scores.argmax())]',
    "multi_label_classification": '[config["id2label"][str(i)] for i in np.flatnonzero($chosen)]',
    "regression": "scores[0]",
}
#: The words of a text, as `split_words` finds them: punctuation around a word is cut off, and each
#: Chinese character is a word; or all characters are.
_WORDS = r"[㐀-鿿]|[^\W㐀-鿿](?:[^\s㐀-鿿]*[^\W㐀-鿿])?|\S"
_CHARACTERS = r"\S"
#: Where a program opens a file.
_OPENED = re.compile(r'ort\.InferenceSession\(here / "onnx/(\w+)\.onnx"\)')


def example(bundle: Bundle, exported: Exported, *, int8: bool = False) -> str:
    """Write a Python program that opens the export and answers its arguments.

    With `int8` a comment names the file in 8 bits, where the program opens the other.
    """
    program = _program(bundle, exported)
    if not int8:
        return program
    return _OPENED.sub(r"\g<0>  # in 8 bits: onnx/\1_quantized.onnx", program)


def _program(bundle: Bundle, exported: Exported) -> str:
    if not exported.writes:
        form, values, task = _READ, _reading(bundle, exported), long_task(bundle)
        if task is not None:
            form, values = _READ_LONG, {**values, **_reading_long(bundle, exported, task)}
        return Template(_BEGIN + form + _ending(bundle, exported)).substitute(values)
    if not isinstance(bundle.task, Rewriting):
        length = bundle.backbone.config.size("max_position_embeddings")
        stops = sorted(stop_tokens_of(bundle))
        return Template(_BEGIN + _WRITE).substitute(
            model=MODEL, texts=["a text"], length=length, stops=stops
        )
    decoding, tokenizer = bundle.task.decoding, bundle.tokenizer
    template, prefix = _BEGIN + _TRANSLATE, bundle.task.options.prefix
    written = "tokenizer.json" if tokenizer.target is None else TARGET_FILE
    if tokenizer.cutter is not None:
        template = _MARIAN_BEGIN + _TRANSLATE
        for usual, own in _MARIAN_TEXTS:
            template = template.replace(usual, own)
        written = "target_vocab.json" if tokenizer.two_vocabularies else "vocab.json"
    return Template(template).substitute(
        text=f"{prefix!r} + text" if prefix else "text",
        unknown=repr(tokenizer.special.get("unk_token")),
        encoder=ENCODER,
        decoder=DECODER,
        texts=["a text"],
        end=bundle.task.source_end,
        longest=decoding.max_new_tokens,
        ratio=decoding.length_ratio or 1000,
        never=list(decoding.never),
        written=written,
    )


def _reading(bundle: Bundle, exported: Exported) -> dict[str, Any]:
    """What stands in `_READ`: how texts are given to the tokenizer."""
    head, options = exported.head, getattr(bundle.task, "options", None)
    texts, read, choices, split = ["a text", "another text"], "texts", "", ""
    if head == "multiple_choice":
        texts, choices = ["a text", "one choice", "another choice"], "[None]"
        read = "[(texts[0], choice) for choice in texts[1:]]"
    elif head == "question_answering" or getattr(options, "pair", False):
        read = "[tuple(texts)]"
    elif head.startswith("token_classification"):
        words = _CHARACTERS if getattr(bundle.task, "characters", False) else _WORDS
        split = f'import re\n\nwords = [re.findall(r"{words}", text) for text in texts]\n'
        read = "words, is_pretokenized=True"
    elif head in ("masked_lm", "pretraining"):
        texts = [f"a {bundle.tokenizer.special.get('mask_token')} text"]
    longest = bundle.backbone.config.size("max_position_embeddings")
    pooling = exported.pooling
    limit = getattr(options, "max_length", None) if pooling is None else pooling.max_length
    kinds = f'    "token_type_ids": np.array([line.type_ids for line in read]){choices},\n'
    return {
        "model": MODEL,
        "texts": texts,
        "split": split,
        "read": read,
        "choices": choices,
        "length": min(longest, limit or longest),
        "pad": bundle.tokenizer.special_id("pad_token") or 0,
        "segments": kinds if exported.segments else "",
    }


def long_task(bundle: Bundle) -> SentenceTask[Any, Any] | None:
    """Return the task of a model that reads more of a long text than its first tokens.

    None for others, and for pairs, which the program cuts.
    """
    task = bundle.task
    if not isinstance(task, SentenceTask) or task.options.pair or task.options.long == "cut":
        return None
    return task


def _reading_long(
    bundle: Bundle, exported: Exported, task: SentenceTask[Any, Any]
) -> dict[str, Any]:
    """What stands in `_READ_LONG`: which tokens of a long text are read."""
    room, windows = task.reading.room(bundle.tokenizer), task.options.long == "windows"
    head = round(room.tokens * HEAD_SHARE)
    sizes = {
        "before": room.before,
        "after": room.after,
        "room": room.tokens,
        "step": room.step,
        "most": task.options.max_windows,
        "head": head,
        "tail": room.tokens - head,
    }
    kinds = '    "token_type_ids": table("type_ids", 0),\n'
    return {
        **sizes,
        "parts": Template(_WINDOWS if windows else _HEAD_TAIL).substitute(sizes),
        "segments": kinds if exported.segments else "",
    }


def _ending(bundle: Bundle, exported: Exported) -> str:
    """What is done with the outputs of a model that reads."""
    head, task = exported.head, bundle.task
    if head == "backbone":
        pooled = exported.pooling is not None
        vectors = "sentence_embedding" if pooled else "last_hidden_state"
        return Template(_VECTORS if pooled else _HIDDEN).safe_substitute(vectors=vectors)
    if head == "multiple_choice":
        return _CHOICE
    if isinstance(task, Answerer):
        threshold = task.threshold if task.options.no_answer else None
        nothing = "" if threshold is None else Template(_NOTHING).substitute(threshold=threshold)
        longest = task.options.max_answer_length
        return Template(_SPAN).substitute(longest=longest, nothing=nothing).replace("\n\n", "\n")
    if head.startswith("token_classification"):
        path = _BEST_PATH if head.endswith("crf") else _BEST_LABELS
        return Template(_TAGS).safe_substitute(path=path)
    if head in ("masked_lm", "pretraining"):
        logits = "logits" if head == "masked_lm" else "prediction_logits"
        mask = bundle.tokenizer.special_id("mask_token")
        return Template(_MASK).safe_substitute(logits=logits, mask=mask)
    entries = {} if task is None else task.config_entries()
    answer = _ANSWERS.get(str(entries.get("problem_type")), "scores")
    if isinstance(task, Multilabel):
        # Where 0.5 is asked of all, the sign of a logit tells.
        tuned = any(own != 0.5 for own in task.thresholds)
        chosen = f"1 / (1 + np.exp(-scores)) >= {task.thresholds}" if tuned else "scores >= 0"
        answer = Template(answer).substitute(chosen=chosen)
    own = long_task(bundle)
    averaged = _POOLED if own is not None and own.options.long == "windows" else ""
    return Template(_LABELS).safe_substitute(answer=answer, pooled=averaged)
