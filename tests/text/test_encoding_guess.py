"""Guessing the encoding of a file, to name it in an error."""

from __future__ import annotations

import pytest

from pretune.text.encoding_guess import encoding_hint, likely_encoding, mostly_utf8

GERMAN = "Der Müller grüßt die Mädchen auf der schönen Straße. Er hört Musik."
FRENCH = "Une femme âgée a été vue près de la forêt où jouent des garçons. C’est l’été."
SWEDISH = "Två små barn går på en väg över ån. Öl är gott på en ö."
SPANISH = "El niño español corrió después de la función; ¿qué pasó mañana?"
POLISH = "Pięć żółtych gęśli źle się łączy z mężczyzną, który śpi."
CZECH = "Příliš žluťoučký kůň úpěl ďábelské ódy; děti běží ke škole."
HUNGARIAN = "Az erdőben nőtt fűzfa alatt hűs víz és szőlő várja a nőt."
TURKISH = "Çocuklar bahçede oynuyor, kadın ise güneşin altında şarkı söylüyor ığdır."
RUSSIAN = "Мужчина в красной рубашке стоит на улице и смотрит на детей."
GREEK = "Ένας άντρας με κόκκινο πουκάμισο στέκεται στον δρόμο."
HEBREW = "איש עם חולצה אדומה עומד ברחוב ומסתכל על הילדים"
ARABIC = "رجل يرتدي قميصا أحمر يقف في الشارع وينظر إلى الأطفال"
THAI = "ผู้ชายใส่เสื้อสีแดงยืนอยู่บนถนนและมองดูเด็ก"
CHINESE = "今天的天气很好，我们一起去公园看电影，大家都觉得这个地方不错。"
TRADITIONAL = "今天的天氣很好，我們一起去公園看電影，大家都覺得這個地方不錯。"
JAPANESE = "今日はとても天気がいいので、友達と一緒に公園へ行きました。コーヒーを飲む。"
KOREAN = "오늘은 날씨가 아주 좋아서 친구와 함께 공원에 갔습니다. 영화를 보았다."


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        (GERMAN, "cp1252"),
        (FRENCH, "cp1252"),
        (SWEDISH, "cp1252"),
        (SPANISH, "cp1252"),
        (GERMAN, "cp850"),
        (FRENCH.replace("’", "'"), "cp850"),
        (GERMAN, "mac_roman"),
        (POLISH, "cp1250"),
        (POLISH, "iso8859-2"),
        (CZECH, "cp1250"),
        (HUNGARIAN, "cp1250"),
        (TURKISH, "cp1254"),
        (RUSSIAN, "cp1251"),
        (RUSSIAN, "koi8-r"),
        (RUSSIAN, "cp866"),
        (GREEK, "cp1253"),
        (HEBREW, "cp1255"),
        (ARABIC, "cp1256"),
        (THAI, "cp874"),
        (CHINESE, "gb18030"),
        (TRADITIONAL, "big5"),
        (JAPANESE, "shift_jis"),
        (JAPANESE, "euc-jp"),
        (KOREAN, "euc-kr"),
    ],
)
@pytest.mark.parametrize("before", ["", "text\tlabel\n" * 80])
def test_the_encoding_of_a_sentence(text: str, encoding: str, before: str) -> None:
    raw = before.encode() + text.encode(encoding)
    place = next(place for place, byte in enumerate(raw) if byte > 127)
    guess = likely_encoding(raw, place)
    assert guess is not None
    assert guess[0] == encoding


@pytest.mark.parametrize("text", ["M\xfcller", "caf\xe9", "ni\xf1o", "\xc4rger", "don\u2019t"])
def test_one_letter_in_much_ascii_is_western(text: str) -> None:
    raw = ("word " * 200 + text + " word" * 200).encode("cp1252")
    assert likely_encoding(raw, 1000) is not None
    assert likely_encoding(raw, 1000)[0] == "cp1252"  # type: ignore[index]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Das schöne Café “0” kostet 5 € für Müller, böse", "German"),
        ("für das Café", "German"),
        ("Müller", "German"),
        ("ein Märchen im Café", "German"),
        ("für den garçon", "French"),
        ("le café", "French"),
        (FRENCH, "French"),
        (SPANISH, "Spanish"),
        ("el pingüino salió de la habitación", "Spanish"),
        ("på väg till en idé för Müller", "Scandinavian"),
    ],
)
def test_words_of_other_languages_do_not_change_the_language(text: str, kind: str) -> None:
    raw = text.encode("cp1252")
    assert likely_encoding(raw) == ("cp1252", kind)


@pytest.mark.parametrize("text", ["好", "很好的电影", "我,我们"])
def test_few_characters_of_chinese(text: str) -> None:
    raw = f"text\tlabel\n{text}\tgood\n".encode("gb18030")
    assert likely_encoding(raw, 11) == ("gb18030", "Chinese")


@pytest.mark.parametrize("raw", [b"thi\xffrd", bytes(range(128, 256))])
def test_nothing_is_named_where_nothing_fits(raw: bytes) -> None:
    assert likely_encoding(raw) is None


class TestHint:
    def hint(self, raw: bytes, expected: str = "utf-8") -> str:
        place = next((place for place, byte in enumerate(raw) if byte > 127), 0)
        return encoding_hint(raw, raw, place, "data.encoding=", expected)

    def test_names_language_and_encoding(self) -> None:
        said = self.hint(GERMAN.encode("cp1252"))
        assert said == "It may be German text in Windows-1252: data.encoding=cp1252"

    def test_damage_in_utf8_is_no_other_encoding(self) -> None:
        raw = GERMAN.encode() + b" \xff " + GERMAN.encode()
        assert mostly_utf8(raw)
        assert "repair that line" in self.hint(raw)
        assert "encoding=" not in self.hint(raw)

    def test_utf8_where_another_was_expected(self) -> None:
        assert self.hint(GERMAN.encode(), "ascii").endswith("data.encoding=utf-8")

    def test_the_expected_encoding_is_not_advised(self) -> None:
        assert "gb18030" not in self.hint(CHINESE.encode("gb18030") + b"\xff", "gb18030")

    @pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
    def test_byte_order_marks(self, encoding: str) -> None:
        assert self.hint(GERMAN.encode(encoding)).endswith(f"data.encoding={encoding}")
