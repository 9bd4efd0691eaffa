"""The Rust engines of the three kinds of tokenizer: WordPiece, byte-level BPE, characters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as RustTokenizer

from pretune.tokenizers.tokenizer import Tokenizer

#: A longer word becomes one [UNK]. Google's tokenization.py has 200, but every published
#: tokenizer.json and transformers have 100, and models are used with those.
LONGEST_WORD = 100


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
    vocabulary: Mapping[str, int], normalizer: normalizers.BertNormalizer
) -> RustTokenizer:
    """BERT's tokenizer (Devlin et al. 2019, section 3); needs [UNK], [CLS] and [SEP]."""
    engine = RustTokenizer(
        models.WordPiece(
            dict(vocabulary),
            unk_token="[UNK]",  # noqa: S106
            max_input_chars_per_word=LONGEST_WORD,
        )
    )
    engine.normalizer = normalizer
    engine.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    engine.decoder = decoders.WordPiece(prefix="##")
    engine.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    return engine


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


def lowercasing(tokenizer: Tokenizer) -> Tokenizer:
    """Copy a tokenizer; the copy lower-cases texts before anything else."""
    engine = RustTokenizer.from_str(tokenizer.engine.to_str())
    steps = [normalizers.Lowercase(), *([engine.normalizer] if engine.normalizer else [])]
    engine.normalizer = normalizers.Sequence(steps)
    return replace(tokenizer, engine=engine)
