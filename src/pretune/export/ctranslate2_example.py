"""The program that is written beside a folder for CTranslate2: it needs no pretune and no torch."""

from __future__ import annotations

from string import Template

from pretune.bundle.bundle import Bundle
from pretune.export.pieces_example import PIECES
from pretune.inference.prompts import stop_tokens_of
from pretune.tasks.translation.rewriting import Rewriting
from pretune.tokenizers.tokenizer import TARGET_FILE

_BEGIN = '''\
"""Runs this model by CTranslate2: pip install ctranslate2 tokenizers"""
import sys
from pathlib import Path

import ctranslate2
from tokenizers import Tokenizer

here = Path(__file__).parent
tokenizer = Tokenizer.from_file(str(here / "tokenizer.json"))
texts = sys.argv[1:] or ["a text"]
'''

_WRITE = """\
model = ctranslate2.Generator(str(here))
for text in texts:
    read = tokenizer.encode(text)
    prompt = read.tokens
    while len(prompt) > 1 and prompt[-1] in $stops and read.offsets[len(prompt) - 1] == (0, 0):
        prompt = prompt[:-1]  # the end that the tokenizer adds to every text
    # The most probable tokens; sampling_topk=10 and sampling_temperature=0.8 vary them.
    room = $length - len(prompt)
    (result,) = model.generate_batch(
        [prompt], max_length=room, end_token=$stops, include_prompt_in_result=False
    )
    print(tokenizer.decode(read.ids[: len(prompt)] + result.sequences_ids[0]))
"""

_TRANSLATE = """\
written = Tokenizer.from_file(str(here / "$written"))
model = ctranslate2.Translator(str(here))
for text in texts:
    source = tokenizer.encode($text).tokens
    source += [] if source[-1:] == [$end] else [$end]
    (result,) = model.translate_batch(
        [source],
        beam_size=$beams,
        length_penalty=$penalty,
        min_decoding_length=0,
        max_decoding_length=min($longest, round($ratio * len(source)) + 10),
        suppress_sequences=$never,
    )
    ids = [written.token_to_id(word) for word in result.hypotheses[0]]
    print(written.decode(ids).strip())
"""


_MARIAN = (
    '''\
"""Runs this model by CTranslate2: pip install ctranslate2 sentencepiece"""
import sys
from pathlib import Path

import ctranslate2
import sentencepiece

here = Path(__file__).parent
'''
    + PIECES
    + """\
model = ctranslate2.Translator(str(here))
for text in sys.argv[1:] or ["a text"]:
    read = [*pieces($text), $end]
    (result,) = model.translate_batch(
        [read],
        beam_size=$beams,
        length_penalty=$penalty,
        min_decoding_length=0,
        max_decoding_length=min($longest, round($ratio * len(read)) + 10),
        suppress_sequences=$never,
    )
    print(joined(result.hypotheses[0]))
"""
)


def program(bundle: Bundle) -> str:
    """Write a Python program that opens the export and answers its arguments."""
    task, tokenizer = bundle.task, bundle.tokenizer
    if not isinstance(task, Rewriting):
        length = bundle.backbone.config.size("max_position_embeddings")
        stops = tokenizer.tokens(sorted(stop_tokens_of(bundle)))
        return Template(_BEGIN + _WRITE).substitute(length=length, stops=stops)
    decoding = task.decoding
    (end,) = tokenizer.tokens([task.source_end])
    template = _BEGIN + _TRANSLATE if tokenizer.cutter is None else _MARIAN
    prefix = task.options.prefix
    return Template(template).substitute(
        text=f"{prefix!r} + text" if prefix else "text",
        written="tokenizer.json" if tokenizer.target is None else TARGET_FILE,
        end=repr(end),
        beams=decoding.beams,
        penalty=decoding.length_penalty,
        longest=decoding.max_new_tokens,
        ratio=decoding.length_ratio or 1000,
        never=repr([tokenizer.written.tokens([number]) for number in decoding.never] or None),
    )
