"""Repair equals ftfy's, filters drop what they name, sentences end where they should."""

import ftfy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitbert.data_prep.clean import reason_to_drop, repair_unicode
from bitbert.data_prep.config import CleanConfig
from bitbert.data_prep.sentences import split_sentences

MOJIBAKE = [
    "Ã©",
    "â€œ",
    "â€™s",
    "Â£",
    "ã‚",
    "\u0091q\u0092",
    "Ð¿Ñ€",
    "&amp;",
    "&lt;b>",
    "ﬁ",
    "ＡＢ",
    "e\u0301",
    "\x1b[31m",
    "\ufeff",
    "\r\n",
    "\u2028",
    "\x07",
    "é",
    "—",
    "“",
    " ",
    "a",
    "word",
    "<",
    "\n",
    "à ",
    "Ã ",
    "ª",
    "¬",
    "µ",
    "ÑĐ",
    "x\x85y",
]


@given(st.lists(st.sampled_from(MOJIBAKE) | st.text(max_size=3), max_size=12).map("".join))
@settings(max_examples=500, deadline=None)
def test_repair_equals_ftfy_on_every_line(text: str) -> None:
    *whole, rest = text.split("\n")
    lines = [*(f"{line}\n" for line in whole), rest]
    assert repair_unicode(text) == "".join(ftfy.fix_text(line, uncurl_quotes=False) for line in lines)


def test_sound_text_is_not_touched() -> None:
    text = "“Naïve” café — 日本語, Ελλάδα; R & D\n\nnext"
    assert repair_unicode(text) == text
    assert repair_unicode("The cafÃ© â€” open") == "The café — open"


@pytest.mark.parametrize(
    ("text", "changes", "reason"),
    [
        ("  \n\t ", {}, "empty"),
        ("too short", {"min_chars": 10}, "too_short"),
        ("much too long", {"min_chars": 1, "max_chars": 12}, "too_long"),
        ("12 34 56 | 78 90 || a", {"min_chars": 1}, "few_letters"),
        ("Это русский текст, and two words", {"min_chars": 1, "scripts": ["latin"]}, "other_script"),
        ("A lone \ud800 surrogate", {"min_chars": 1}, "invalid_utf8"),
        ("Это русский текст, and two words", {"min_chars": 1, "scripts": ["latin", "cyrillic"]}, None),
        ("Это русский текст", {"min_chars": 1, "scripts": ["cyrillic"]}, None),
        ("Élan vital, señor", {"min_chars": 1, "scripts": ["latin"], "min_script_share": 1.0}, None),
        ("日本語の文章です", {"min_chars": 1, "scripts": ["han", "kana"], "min_script_share": 1.0}, None),
    ],
)
def test_filters_name_their_reason(text: str, changes: dict[str, object], reason: str | None) -> None:
    assert reason_to_drop(text, CleanConfig.model_validate(changes)) == reason


@pytest.mark.parametrize(
    "sentences",
    [
        ["Dr. Smith met Mr. Jones at St. Paul's.", "They talked."],
        ["Use a tool, i.e. a hammer, or e.g. a saw.", "Then stop."],
        ["It costs 3.14 dollars in the U.S. market today.", "Prices rose 2.5 percent."],
        ["He waited... and waited.", "Then he left."],
        ['"Go away!" she said.', "He went."],
        ["What?!", "No."],
        ["The J. R. R. Tolkien books sold well.", "See p. 5 for more."],
    ],
)
def test_tricky_sentences(sentences: list[str]) -> None:
    assert split_sentences(" ".join(sentences), "en") == sentences


def test_splitting_drops_nothing_but_white_space() -> None:
    text = "  One  two.\n\nThree\tfour?  Five \n six.  "
    assert "".join("".join(split_sentences(text, "en")).split()) == "".join(text.split())
