"""When two texts say the same: spelling, width, case and punctuation aside, but never what carries meaning.

Promises: no text that has something becomes nothing; signs, decimals, and symbols such as + % # stay. Half-width and
full-width, composed and decomposed spellings are one. Costs: a few passes over a text.
"""

from __future__ import annotations

import unicodedata

import regex

# Full-width forms of ASCII and the wide space, curly quotes, and signs that are typed in several ways. Not NFKC, to
# which x² is x2.
WIDTHS = {wide: wide - 0xFEE0 for wide in range(0xFF01, 0xFF5F)} | {0x3000: " ", 0xA0: " "}
SIGNS = {
    "−": "-",
    "–": "-",
    "‐": "-",
    "‑": "-",
    "’": "'",
    "‘": "'",
    "“": '"',
    "”": '"',
    "【": "[",
    "】": "]",
    "「": '"',
    "」": '"',
}
TYPED = WIDTHS | {ord(sign): plain for sign, plain in SIGNS.items()}
# Punctuation that says nothing: all but symbols, and but for - . , : inside words and numbers and before digits.
SEPARATES = regex.compile(r"(?<=\d),(?=\d{3}(?!\d))")
PLUS = regex.compile(r"(?<![\p{L}\p{N}])\+(?=\d)")
KEPT = r"%#&@/*\\"
SILENT = regex.compile(
    rf"(?V1)[\p{{P}}--[{KEPT}\-.,:]]"
    r"|(?<![\p{L}\p{N}])-(?!\d|\.\d)|(?<=[\p{L}\p{N}])-(?![\p{L}\p{N}])"
    r"|\.(?!\d)|(?<=\p{L})\.(?=\d)|[,:](?!\d)|(?<!\d)[,:]"
)
ARTICLES = ("a", "an", "the")
WORD = regex.compile(r"\p{Han}|[^\s\p{Han}]+")


def typed(text: str) -> str:
    """As a keyboard types it: NFC, half width, straight quotes, one kind of minus."""
    return unicodedata.normalize("NFC", text).translate(TYPED)


def plain_text(text: str) -> str:
    """`text` but for case, punctuation and white space; where nothing else is in it, the punctuation itself."""
    lower = typed(text).casefold()
    bare = SILENT.sub("", PLUS.sub("", SEPARATES.sub("", lower)))
    return " ".join(bare.split()) or " ".join(lower.split())


def normalised_answer(text: str) -> str:
    """`plain_text` without English articles, as SQuAD's evaluation has it; an article by itself stays.

    SQuAD's own takes A, + and "the" for nothing, and -5 for 5 (Rajpurkar et al. 2016, arXiv:1606.05250).
    """
    plain = plain_text(text)
    return " ".join(word for word in plain.split() if word not in ARTICLES) or plain


def words(normalised: str) -> list[str]:
    """The words of a normalised text; of Chinese its characters, as in MLQA (Lewis et al. 2020, arXiv:1910.07475)."""
    found: list[str] = WORD.findall(normalised)
    return found
