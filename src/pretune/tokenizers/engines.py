"""The Rust engines of the three kinds of tokenizer: WordPiece, byte-level BPE, characters."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as RustTokenizer

#: A longer word becomes one [UNK]. Google's tokenization.py has 200, but every published
#: tokenizer.json and transformers have 100, and models are used with those.
LONGEST_WORD = 100
#: Stands for a space in the pieces of SentencePiece.
SPACE = "\u2581"
#: Put before the name of a token that no text may lead to: it is in no text.
UNREACHED = "\uffff"


def bert_normalizer(
    lowercase: bool, *, chinese: bool = True, strip_accents: bool | None = None
) -> normalizers.BertNormalizer:
    """BERT's normalizer: removes control characters, and puts spaces around ideographs.

    Without `chinese` ideographs stay as they are. By default uncased models lose their accents.
    """
    return normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=chinese,
        strip_accents=strip_accents,
        lowercase=lowercase,
    )


def wordpiece_engine(
    vocabulary: Mapping[str, int],
    normalizer: normalizers.BertNormalizer,
    unknown: str = "[UNK]",
) -> RustTokenizer:
    """BERT's tokenizer (Devlin et al. 2019, section 3), without the tokens around a text.

    `unknown` is the entry of the vocabulary that stands for words that cannot be spelled.
    """
    engine = RustTokenizer(
        models.WordPiece(dict(vocabulary), unk_token=unknown, max_input_chars_per_word=LONGEST_WORD)
    )
    engine.normalizer = normalizer
    engine.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    engine.decoder = decoders.WordPiece(prefix="##")
    return engine


def frame_as_bert(engine: RustTokenizer, begin: str = "[CLS]", end: str = "[SEP]") -> None:
    """Make an engine put BERT's special tokens around texts: `[CLS] a [SEP] b [SEP]`.

    The second text of a pair is segment 1. The engine must have both tokens.
    """
    engine.post_processor = processors.TemplateProcessing(
        single=[f"{begin}:0", "$A:0", f"{end}:0"],
        pair=[f"{begin}:0", "$A:0", f"{end}:0", "$B:1", f"{end}:1"],
        special_tokens=[(token, engine.token_to_id(token)) for token in (begin, end)],
    )


def ends_processor(
    engine: RustTokenizer, begin: str | None, end: str | None
) -> processors.TemplateProcessing:
    """Make what puts a token before each text, after it, or both; the engine has their ids."""
    before, after = [[] if token is None else [token] for token in (begin, end)]
    first, second = (
        [*(f"{t}:{i}" for t in before), f"${name}:{i}", *(f"{t}:{i}" for t in after)]
        for i, name in enumerate("AB")
    )
    return processors.TemplateProcessing(
        single=first,
        pair=[*first, *second],
        special_tokens=[(token, engine.token_to_id(token)) for token in {*before, *after}],
    )


def literal_engine(engine: RustTokenizer) -> RustTokenizer:
    """An engine whose model never makes a special token of its name in a text.

    `encode_special_tokens` leaves such names to the model. Unigram has them among its pieces, with
    the best of all scores; a BPE may have merges that lead to them. Then it is a copy that has
    other names for them; else the engine itself.
    """
    special = {t.content for t in engine.get_added_tokens_decoder().values() if t.special}
    if not any(_spells_whole(engine, name) for name in special):
        return engine
    parts = json.loads(engine.to_str())

    def renamed(text: str) -> str:
        return UNREACHED + text if text in special else text

    model = parts["model"]
    if isinstance(model["vocab"], list):
        model["vocab"] = [[renamed(text), score] for text, score in model["vocab"]]
    else:
        model["vocab"] = {renamed(text): number for text, number in model["vocab"].items()}
        merges = [m.split(" ") if isinstance(m, str) else m for m in model["merges"]]
        model["merges"] = [m for m in merges if not special & {*m, "".join(m)}]
    if model.get("unk_token") is not None:
        model["unk_token"] = renamed(model["unk_token"])
    for token in parts["added_tokens"]:
        token["content"] = renamed(token["content"])
    return RustTokenizer.from_str(json.dumps(parts))


def _spells_whole(engine: RustTokenizer, name: str) -> bool:
    """Whether the model makes one token of a text that is the name of a special token."""
    if not isinstance(engine.model, models.Unigram | models.BPE):
        return False
    return any(token.id == engine.token_to_id(name) for token in engine.model.tokenize(name))


def drop_segments(engine: RustTokenizer) -> None:
    """Make an engine give the second text of a pair segment 0, as the first."""
    processor = engine.post_processor
    if processor is not None:
        state = _in_one_segment(json.loads(processor.__getstate__()))
        processor.__setstate__(json.dumps(state).encode())
        engine.post_processor = processor


def precompiled_step(engine: RustTokenizer) -> normalizers.Normalizer | None:
    """The table of replacements (of SentencePiece) in an engine's normalizer, or None."""
    state = None if engine.normalizer is None else json.loads(engine.normalizer.__getstate__())
    steps = [] if state is None else state.get("normalizers", [state])
    tables = (step["precompiled_charsmap"] for step in steps if step["type"] == "Precompiled")
    table = next(tables, None)
    return None if table is None else normalizers.Precompiled(base64.b64decode(table))


def with_spelling(engine: RustTokenizer, usual: RustTokenizer) -> models.Model:
    """The model of an engine, with the rules of another one for how words are spelled."""
    model: models.Model = engine.model
    if spell_alike(engine, usual):
        return model
    state, rules = (json.loads(e.model.__getstate__()) for e in (engine, usual))
    model = type(model)()
    kept = {"vocab": state["vocab"]} | {k: state[k] for k in ("merges",) if k in state}
    model.__setstate__(json.dumps({**rules, **kept}).encode())
    return model


def spell_alike(one: RustTokenizer, other: RustTokenizer) -> bool:
    """Whether two engines spell words by the same rules, whatever their vocabularies are."""
    names = (
        *("unk_token", "max_input_chars_per_word", "continuing_subword_prefix"),
        *("end_of_word_suffix", "dropout", "fuse_unk", "byte_fallback", "ignore_merges"),
    )
    first, second = (
        # Of Unigram only the number of the unknown token can be seen: by a word that nobody has.
        [token.id for token in engine.model.tokenize("\uffff")]
        if isinstance(engine.model, models.Unigram)
        else [getattr(engine.model, name, None) or None for name in names]
        for engine in (one, other)
    )
    return first == second


def cuts_alike(one: RustTokenizer, other: RustTokenizer) -> bool:
    """Whether two engines normalize, cut and decode by the same rules, whatever they know."""
    parts = ("normalizer", "pre_tokenizer", "decoder")
    return all(_state(one, part) == _state(other, part) for part in parts)


def frames_alike(one: RustTokenizer, other: RustTokenizer, *, segments: bool) -> bool:
    """Whether two engines put the same tokens around texts, and give the same segments if asked."""
    probe = RustTokenizer(models.WordLevel({"\0a": 0, "\0b": 1}, unk_token="\0a"))  # noqa: S106
    first, second = (probe.encode(text, add_special_tokens=False) for text in ("\0a", "\0b"))

    def framed(engine: RustTokenizer) -> list[Any]:
        processor = engine.post_processor or processors.ByteLevel()
        encodings = [processor.process(first), processor.process(first, second)]
        return [(e.ids, e.tokens, e.type_ids if segments else None) for e in encodings]

    return framed(one) == framed(other)


def _state(engine: RustTokenizer, name: str) -> Any:
    """A part of an engine as data, without what changes no token."""
    part = getattr(engine, name)
    return None if part is None else _effective(json.loads(part.__getstate__()), name)


def _effective(state: Any, name: str) -> Any:
    if isinstance(state, list):
        return [_effective(item, name) for item in state]
    if not isinstance(state, dict):
        return state
    unused = set[str]()
    if state.get("type") == "ByteLevel":
        # Offsets are not used, and a decoder looks at none of its settings.
        unused = {"trim_offsets"} if name == "pre_tokenizer" else {*state} - {"type"}
    return {key: _effective(value, name) for key, value in state.items() if key not in unused}


def _in_one_segment(state: dict[str, Any]) -> dict[str, Any]:
    kind = state["type"]
    if kind == "Sequence":
        return {**state, "processors": [_in_one_segment(part) for part in state["processors"]]}
    if kind == "BertProcessing":
        cls, sep = (token for token, _ in (state["cls"], state["sep"]))
        framed = processors.TemplateProcessing(
            single=[cls, "$A", sep],
            pair=[cls, "$A", sep, "$B", sep],
            special_tokens=[tuple(state["cls"]), tuple(state["sep"])],
        )
        return _in_one_segment(json.loads(framed.__getstate__()))
    if kind == "TemplateProcessing":
        for part in (*state["single"], *state["pair"]):
            for piece in part.values():  # {"SpecialToken": {...}} or {"Sequence": {...}}
                piece["type_id"] = 0
    return state


def byte_level_engine(
    vocabulary: Mapping[str, int], merges: Sequence[tuple[str, str]], *, prefix_space: bool = False
) -> RustTokenizer:
    """GPT-2's tokenizer (Radford et al. 2019, section 2.2): takes any text, and gives it back.

    The most frequent pair is the first of `merges`. With `prefix_space` a space is put before a
    text, as before a word inside a text.
    """
    engine = RustTokenizer(models.BPE(dict(vocabulary), list(merges)))
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    engine.decoder = decoders.ByteLevel()
    engine.post_processor = processors.ByteLevel(trim_offsets=False)
    return engine


def space_before_words(engine: RustTokenizer) -> bool:
    """Make a byte-level engine put a space before each text or word; whether it did not before."""
    cutter = engine.pre_tokenizer
    if not isinstance(cutter, pre_tokenizers.ByteLevel) or cutter.add_prefix_space:
        return False
    cutter.add_prefix_space = True
    engine.pre_tokenizer = cutter
    return True


def character_engine(vocabulary: Mapping[str, int], unknown: str | None) -> RustTokenizer:
    """A tokenizer with one token a character.

    `unknown` is the token for all other characters; None: a text with others is refused.
    """
    if unknown is None:
        # BPE would drop unknown characters silently; a vocabulary of words refuses them.
        engine = RustTokenizer(models.WordLevel(dict(vocabulary), unk_token=""))
        engine.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    else:
        # BPE without merges leaves single characters, five times as fast as a word for each.
        engine = RustTokenizer(models.BPE(dict(vocabulary), [], unk_token=unknown))
    engine.decoder = decoders.Fuse()
    return engine
