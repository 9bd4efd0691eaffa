"""Guessing the encoding of bytes that are not valid in the expected one, to name it in an error.

A text is never read by a guess. Each candidate decodes the bytes; the winner is the one whose text
looks most like writing: common characters of its script, in places where that script has them.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator
from typing import NamedTuple

#: Bytes looked at, before and after the first that is not valid.
_BEFORE, _AFTER = 1 << 13, 1 << 14
#: The lowest score, from 0 to 1, at which a candidate is named.
_PLAUSIBLE = 0.55
#: Weights of characters that a script has but that are not among its common ones: those of the
#: first level of its character set, which were put there as the usual ones, and all others.
_USUAL, _RARE = 0.6, 0.15

#: The most frequent characters of modern Chinese, simplified and traditional.
_SIMPLIFIED = frozenset(
    "的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之年过发"
    "后作里用道行所然家种事成方多经么去法学如都同现当没动面起看定天分还进好小部其些主样理心她本前开"
    "但因只从想实日军者意无力它与长把机十民第公此已工使情明性知全三又关点正业外将两高间由问很最重并"
    "物手应战向头文体政美相见被利什二等产或新己制身果加西斯月话合回特代内信表化老给世位次度门任常先"
    "海通教儿原东声提立及比员解水名真论处走义各入几口认条平系气题活尔更别打女变四神总何电数安少报才"
    "结反受目太量再感建务做接必场件计管期市直德资命山金指克许统区保至队形社便空决治展马科司五基眼书"
    "非则听白却界达光放强即像难且权思王象完设式色路记南品住告类求据程北边死张该交规万取拉格望觉术领"
    "共确传师观清今切院让识候带导争运吗吧呢啊影店"
)
_TRADITIONAL = frozenset(
    "的一是不了在人有我他這個們中來上大為和國地到以說時要就出會可也你對生能而子那得於著下自之年過發"
    "後作裡用道行所然家種事成方多經麼去法學如都同現當沒動面起看定天分還進好小部其些主樣理心她本前開"
    "但因只從想實日軍者意無力它與長把機十民第公此已工使情明性知全三又關點正業外將兩高間由問很最重並"
    "物手應戰向頭文體政美相見被利什二等產或新己制身果加西斯月話合回特代內信表化老給世位次度門任常先"
    "海通教兒原東聲提立及比員解水名真論處走義各入幾口認條平系氣題活爾更別打女變四神總何電數安少報才"
    "結反受目太量再感建務做接必場件計管期市直德資命山金指克許統區保至隊形社便空決治展馬科司五基眼書"
    "非則聽白卻界達光放強即像難且權思王象完設式色路記南品住告類求據程北邊死張該交規萬取拉格望覺術領"
    "共確傳師觀清今切院讓識候帶導爭運嗎吧呢啊影店"
)
#: The most frequent syllables of Korean.
_SYLLABLES = frozenset(
    "이다는에의가을를은고한지하기로도사서인자리시나라어그해아대일정수만제부여상보장전스주원으게있면구"
    "들국과조없무신미공생세동안치소선내비유오성모거방우계관경등점트진력분연발강요드할법했었습니까던때것"
    "말더와된될않같학교좋너번년월위적현결물날마러려르며데네았였저개중바업단용문회행당체역실화후란임통"
    "많사람야음집영금식감간심민산반두양합불차각종려급군님늘큰볼본"
)
_CJK_MARKS = frozenset("，。、；：？！「」『』（）《》〈〉【】“”‘’—…·・ー～　０１２３４５６７８９")

#: Marks of Western printing, and those of them that also stand between two letters.
_MARKS = frozenset("’‘“”„‚–—…«»‹›°§©®€£•·¿¡ºª\xa0")
_INSIDE_WORDS = frozenset("’–—…")


class _Candidate(NamedTuple):
    encodings: tuple[str, ...]  # the first that decodes the bytes is named
    kind: str  # what text in it is, for people
    weight: Callable[[str, int], float]  # of a text's character at a place, from 0 to 1


def _ideograph(character: str, charset: str, last: int) -> float:
    """The weight of an ideograph: the first level of the character set ends with the row `last`."""
    if not "\u4e00" <= character <= "\u9fff":
        return 0.0
    row = character.encode(charset, "replace")[0]  # a question mark where the set lacks it
    return _USUAL if 0x80 < row <= last else _RARE


def _ideographs(common: frozenset[str], charset: str, last: int) -> Callable[[str, int], float]:
    def weight(text: str, place: int) -> float:
        character = text[place]
        if character in common or character in _CJK_MARKS:
            return 1.0
        return _ideograph(character, charset, last)

    return weight


def _japanese(text: str, place: int) -> float:
    character = text[place]
    if "\u3041" <= character <= "\u30fe" or character in _CJK_MARKS:  # kana
        return 1.0
    return _ideograph(character, "shift_jis", 0x98)


def _korean(text: str, place: int) -> float:
    character = text[place]
    if character in _SYLLABLES or character in _CJK_MARKS:
        return 1.0
    return _USUAL if "\uac00" <= character <= "\ud7a3" else 0.0


def _is_ascii_letter(character: str) -> bool:
    return character.isascii() and character.isalpha()


def _around(text: str, place: int) -> tuple[str, str]:
    """The characters before and after a place; a space at either end of the text."""
    return text[place - 1 : place] or " ", text[place + 1 : place + 2] or " "


def _latin(letters: str, rare: str = "") -> Callable[[str, int], float]:
    """The weight of letters with accents: among ASCII letters, not in runs of their own.

    Those that are `rare`, or tell it from none of the languages before it, weigh a little less.
    """
    usual, loaned = (frozenset(own + own.upper()) for own in (letters, rare))

    def weight(text: str, place: int) -> float:
        character, (before, after) = text[place], _around(text, place)
        if not (before.isascii() or after.isascii()):
            return 0.0
        if character in _MARKS:
            inside = _is_ascii_letter(before) and _is_ascii_letter(after)
            return 1.0 if not inside or character in _INSIDE_WORDS else 0.0
        if character.isupper() and before.islower():
            return 0.0
        return 1.0 if character in usual else 0.99 if character in loaned else 0.0

    return weight


def _alphabet(common: str, others: str) -> Callable[[str, int], float]:
    """The weight of letters of another alphabet, which never touch ASCII letters."""

    def weight_of(text: str, place: int) -> float:
        character, (before, after) = text[place], _around(text, place)
        if _is_ascii_letter(before) or _is_ascii_letter(after):
            return 0.0
        if character.isupper() and before.islower():
            return 0.0
        lower = character.lower()
        weight = 1.0 if lower in common else 0.4 if lower in others or character in _MARKS else 0.0
        # Whole words of capitals are rarer than a letter table in which the cases change places.
        return weight / 2 if character.isupper() and before.isupper() else weight

    return weight_of


_WESTERN = ("cp1252", "mac_roman", "cp850")
_CENTRAL = ("cp1250", "iso8859-2")


def _in_each(
    encodings: tuple[str, ...], kind: str, weight: Callable[[str, int], float]
) -> Iterator[_Candidate]:
    for encoding in encodings:
        yield _Candidate((encoding,), kind, weight)


#: Of equal scores the earlier candidate wins.
_CANDIDATES = (
    _Candidate(("gb18030",), "Chinese", _ideographs(_SIMPLIFIED, "gb2312", 0xD7)),
    _Candidate(("big5", "cp950"), "Chinese", _ideographs(_TRADITIONAL, "big5", 0xC6)),
    _Candidate(("shift_jis", "cp932"), "Japanese", _japanese),
    _Candidate(("euc_jp",), "Japanese", _japanese),
    _Candidate(("euc_kr", "cp949"), "Korean", _korean),
    *_in_each(_WESTERN, "German", _latin("äöüß", "é")),
    *_in_each(_WESTERN, "French", _latin("éèêëàâçùûîïôœ", "æü")),
    *_in_each(_WESTERN, "Spanish", _latin("áéíóúñ", "ü")),
    *_in_each(_WESTERN, "Portuguese", _latin("ãõáéíóúâêôçà", "ü")),
    *_in_each(_WESTERN, "Italian", _latin("àèéìòù")),
    *_in_each(_WESTERN, "Scandinavian", _latin("åäöæø", "éü")),
    *_in_each(("cp1254",), "Turkish", _latin("ğıİş", "çöüâîû")),
    *_in_each(_WESTERN, "Icelandic", _latin("ðýþ", "áéíóúæö")),
    *_in_each(_CENTRAL, "Polish", _latin("ąćęłńóśźż")),
    *_in_each(_CENTRAL, "Czech or Slovak", _latin("čďěňřšťůžľĺŕ", "áéíóúýôä")),
    *_in_each(_CENTRAL, "Hungarian", _latin("őű", "áéíóöúü")),
    *_in_each(
        ("cp1251", "koi8-r", "cp866", "iso8859-5"),
        "Russian",
        _alphabet("оеаинтсрвлкмдпу", "яыьгзбчйхжшюцщэфъёіїєґў«»"),
    ),
    *_in_each(
        ("cp1253", "iso8859-7"), "Greek", _alphabet("αοιετσνηυρπκμλς", "άέήίόύώωδγχθφβξζψϊϋ")
    ),
    *_in_each(("cp1255", "iso8859-8"), "Hebrew", _alphabet("יוהלאמרתבשנ", "כדפעקחגטזסצםןךףץ")),
    *_in_each(("cp1256",), "Arabic", _alphabet("اليمنورتبةعدسف", "هكقحجشصطخذءأإآىئضزثغظؤ،")),
    *_in_each(("cp874",), "Thai", _alphabet("านรอกเงมยลวดทส่้ี", "ตะคัิ์ปหบพชแ็ใจขไโถผุูึซธศณฟญษภฐๆฎำ")),
)


def likely_encoding(raw: bytes, place: int = 0) -> tuple[str, str] | None:
    """The encoding that bytes are most likely in, and what they are then, such as "German".

    None where no candidate gives anything like text. `place` is the first byte that is not valid
    UTF-8; only some thousand bytes around it are looked at.
    """
    # All before the place is ASCII in the encodings that are tried, so any cut there is at a
    # character; a character cut at the end is no mistake.
    sample = raw[max(place - _BEFORE, 0) : place + _AFTER]
    best, highest = None, _PLAUSIBLE
    for candidate in _CANDIDATES:
        for encoding in candidate.encodings:
            try:
                text = codecs.getincrementaldecoder(encoding)().decode(sample)
            except UnicodeDecodeError:
                continue
            score = _score(text, candidate.weight)
            if score > highest:
                best, highest = (_spelled(encoding), candidate.kind), score
            break
    return best


def _score(text: str, weight: Callable[[str, int], float]) -> float:
    """The mean weight of the characters that are not ASCII."""
    places = [place for place, character in enumerate(text) if not character.isascii()]
    return sum(weight(text, place) for place in places) / len(places) if places else 0.0


def _spelled(encoding: str) -> str:
    return encoding.replace("_", "-") if encoding.startswith("euc") else encoding


def mostly_utf8(raw: bytes) -> bool:
    """Whether bytes are UTF-8 with some damage: far more valid characters than bad bytes."""
    bad = raw.decode("utf-8", "replace").count("\ufffd")
    good = sum(not character.isascii() for character in raw.decode("utf-8", "ignore"))
    return good > 4 * bad


def encoding_hint(start: bytes, raw: bytes, place: int, option: str, expected: str) -> str:
    """The way out for bytes that are not valid in the expected encoding.

    Args:
        start: the beginning of the file.
        raw: some of its bytes.
        place: the first of these that is not valid.
        option: the option that names an encoding; a name is appended to it.
        expected: the encoding in which the bytes are not valid.
    """
    for mark, encoding in ((b"\xff\xfe\0\0", "utf-32"), (b"\0\0\xfe\xff", "utf-32")):
        if start.startswith(mark):
            return f"It looks like UTF-32: {option}{encoding}"
    if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return f"It looks like UTF-16: {option}utf-16"
    around = raw[max(place - _BEFORE, 0) : place + _AFTER]
    utf8 = expected.startswith("utf-8")
    if utf8 and mostly_utf8(around):
        return "The text around it is valid UTF-8: repair that line."
    if not utf8 and not around.isascii() and _is_utf8(start):
        return f"It looks like UTF-8: {option}utf-8"
    guess = likely_encoding(raw, place)
    if guess is None or guess[0] == expected:
        return f"Repair that line, or name the encoding of the file: {option}NAME (such as cp1252)."
    encoding, kind = guess
    return f"It may be {kind} text in {_title(encoding)}: {option}{encoding}"


def _is_utf8(raw: bytes) -> bool:
    try:
        codecs.getincrementaldecoder("utf-8")().decode(raw)
    except UnicodeDecodeError:
        return False
    return True


#: The names that people know, where upper case alone does not give them.
_TITLES = {
    "cp1252": "Windows-1252",
    "cp1250": "Windows-1250",
    "cp1251": "Windows-1251",
    "cp1253": "Windows-1253",
    "cp1254": "Windows-1254",
    "cp1255": "Windows-1255",
    "cp1256": "Windows-1256",
    "big5": "Big5",
    "cp950": "Big5",
    "shift_jis": "Shift_JIS",
    "cp932": "Shift_JIS",
    "mac_roman": "Mac Roman",
}


def _title(encoding: str) -> str:
    return _TITLES.get(encoding, encoding.upper())
