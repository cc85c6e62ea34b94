"""Which documents stay, and in what form: Unicode repair, length, letters, script."""

import re
import string
import unicodedata
from functools import cache
from typing import TYPE_CHECKING

from .config import CleanConfig

if TYPE_CHECKING:  # ftfy is imported only where it is used
    from ftfy import TextFixerConfig

EMPTY, TOO_SHORT, TOO_LONG = "empty", "too_short", "too_long"
FEW_LETTERS, OTHER_SCRIPT, INVALID_UTF8 = "few_letters", "other_script", "invalid_utf8"

_SCRIPT_RANGES = {
    "latin": "A-Za-z\u00aa\u00ba\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u1e00-\u1eff",
    "greek": "\u0370-\u03ff\u1f00-\u1fff",
    "cyrillic": "\u0400-\u052f\u1c80-\u1c8f\u2de0-\u2dff\ua640-\ua69f",
    "hebrew": "\u0590-\u05ff",
    "arabic": "\u0600-\u06ff\u0750-\u077f\u08a0-\u08ff\ufb50-\ufdff\ufe70-\ufeff",
    "devanagari": "\u0900-\u097f\ua8e0-\ua8ff",
    "thai": "\u0e00-\u0e7f",
    "hangul": "\u1100-\u11ff\u3130-\u318f\uac00-\ud7af",
    "kana": "\u3040-\u30ff\u31f0-\u31ff",
    "han": "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002ebef",
}
_LINE = re.compile(r"[^\n]*\n|[^\n]+")
_NOT_ASCII = re.compile(r"[^\x00-\x7f]+")
_ASCII = bytes(range(0x80))
_ASCII_LETTERS = string.ascii_letters.encode()
_ASCII_SPACE = b" \t\n\r\x0b\x0c"

# ftfy leaves a line alone when it has no entity, no control character, none of the characters that ftfy maps,
# is in normal form C, and looks like no mojibake. Its own pattern for the last is searched near non-ASCII
# characters only: each match holds one, and is at most 7 characters long.
_CONTEXT_CHARS = 8
_ASCII_SUSPECTS = re.compile(r"[&\x00-\x08\x0b-\x1f\x7f]")


def clean_text(text: str, config: CleanConfig) -> str:
    """The form of a document that is kept, if it is kept (see :func:`reason_to_drop`)."""
    return repair_unicode(text) if config.repair_unicode else text


def reason_to_drop(text: str, config: CleanConfig) -> str | None:
    """Why a repaired document is left out, or None when it stays."""
    stripped = text.strip()
    if not stripped:
        return EMPTY
    if len(stripped) < config.min_chars:
        return TOO_SHORT
    if len(stripped) > config.max_chars:
        return TOO_LONG
    try:
        encoded = stripped.encode("utf-8")
    except UnicodeEncodeError:  # a lone surrogate, which JSON can spell
        return INVALID_UTF8
    letters, visible, wanted = _count_letters(encoded, config.scripts)
    if letters < config.min_letter_share * visible:
        return FEW_LETTERS
    if config.scripts and wanted < config.min_script_share * letters:
        return OTHER_SCRIPT
    return None


def repair_unicode(text: str) -> str:
    """ftfy's repair, line by line; curly quotes stay as they are."""
    if _is_surely_sound(text):
        return text
    import ftfy

    lines = _LINE.findall(text)
    return "".join(line if _is_surely_sound(line) else ftfy.fix_text(line, _ftfy_config()) for line in lines)


def _is_surely_sound(text: str) -> bool:
    if _ASCII_SUSPECTS.search(text):
        return False
    if text.isascii():
        return True
    if not unicodedata.is_normalized("NFC", text):
        return False
    from ftfy.badness import is_bad

    spans = (match.span() for match in _NOT_ASCII.finditer(text))
    near = "\n".join(text[max(0, start - _CONTEXT_CHARS) : end + _CONTEXT_CHARS] for start, end in spans)
    return not _mapped_characters().search(near) and not is_bad(near)


@cache
def _mapped_characters() -> re.Pattern[str]:
    """Single characters that ftfy replaces or removes wherever they stand."""
    from ftfy import chardata

    mapped = {
        *chardata.LIGATURES,
        *chardata.WIDTH_MAP,
        *chardata.CONTROL_CHARS,
        *range(0x80, 0xA0),
        0x2028,
        0x2029,
    }
    singles = "".join(re.escape(chr(code)) for code in sorted(mapped) if code > 0x7F)
    return re.compile(f"[{singles}\ud800-\udfff]")


@cache
def _ftfy_config() -> "TextFixerConfig":
    from ftfy import TextFixerConfig

    return TextFixerConfig(uncurl_quotes=False, explain=False)


def _count_letters(encoded: bytes, scripts: tuple[str, ...]) -> tuple[int, int, int]:
    """(letters, characters that are not white space, letters of ``scripts``) of one document."""
    ascii_letters = len(encoded) - len(encoded.translate(None, _ASCII_LETTERS))
    ascii_visible = len(encoded.translate(None, _ASCII_SPACE + bytes(range(0x80, 0x100))))
    others = encoded.translate(None, _ASCII).decode("utf-8")  # ten times faster than to look for them in text
    other_letters = sum(map(str.isalpha, others))
    other_spaces = sum(map(str.isspace, others))
    wanted = len(_script_pattern(scripts).findall(others)) if scripts and others else 0
    wanted += ascii_letters if "latin" in scripts else 0
    return ascii_letters + other_letters, ascii_visible + len(others) - other_spaces, wanted


@cache
def _script_pattern(scripts: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(f"[{''.join(_SCRIPT_RANGES[script] for script in scripts)}]")
