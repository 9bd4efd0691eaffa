"""What the programs beside exports of an OPUS-MT have in common: it cuts texts by SentencePiece."""

from __future__ import annotations

#: Follows `here`, the folder of the program.
PIECES = '''\
source = sentencepiece.SentencePieceProcessor(model_file=str(here / "source.spm"))


def pieces(text):
    """Cut a text; the language that is wanted may stand first: >>fra<< How are you?"""
    place = text.find("<<") + 2 if text.startswith(">>") and "<<" in text else 0
    return [text[:place]] * bool(place) + source.encode(text[place:], out_type=str)


def joined(words):
    """Put pieces together, whose mark for a space is U+2581."""
    return "".join(words).replace(chr(0x2581), " ").strip()


'''
