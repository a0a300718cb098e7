"""HTML out of texts, without taking what only looks like it."""

import html
import re

TAG_NAMES = (
    "a|abbr|acronym|address|article|aside|b|big|blockquote|body|br|button|caption|center|cite|code|col|colgroup|dd|del|"
    "details|dfn|div|dl|dt|em|embed|fieldset|figcaption|figure|font|footer|form|frame|frameset|h[1-6]|head|header|hr|"
    "html|i|iframe|img|input|ins|kbd|label|legend|li|link|main|map|mark|meta|nav|nobr|noscript|object|ol|optgroup|"
    "option|p|param|picture|pre|q|s|samp|script|section|select|small|source|span|strike|strong|style|sub|summary|sup|"
    "svg|table|tbody|td|textarea|tfoot|th|thead|time|title|tr|tt|u|ul|var|video|wbr"
)
# A name alone does not make a tag: what follows must be its end or attributes, so "x<b and c>d" stays.
ATTRIBUTE = r"""\s+[\w:-]+\s*=\s*(?:"[^"<>]*"|'[^'<>]*'|[^\s"'<>]+)|\s+(?:checked|disabled|nowrap|noshade|selected)"""
TAG = re.compile(rf"</?(?:{TAG_NAMES})(?:{ATTRIBUTE})*\s*/?>|<!doctype[^<>]*>", re.IGNORECASE)
# `#39;`, where a careless tool ate the `&`. Only the codes of punctuation: "ticket #1234;" is no entity.
LOST_AMPERSAND = re.compile(r"(?<!&)#(3[3-9]|4[0-7]|6[0-4]|9[1-6]|1[45]\d|16\d|82[0-4]\d|8364);")


COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
HUGE_CODE = re.compile(r"&(?=#[0-9]{9})")  # no character, and too long for Python to read as a number


def clean_html(text: str) -> str:
    """Return text without HTML tags and with its entities decoded; "<3" and "a < b" are no tags."""
    repaired = LOST_AMPERSAND.sub(r"&#\1;", text)
    decoded = _unescape(_unescape(repaired))  # twice: `&amp;lt;b&amp;gt;` is common
    return TAG.sub(" ", _without_comments(decoded))


def _unescape(text: str) -> str:
    return html.unescape(HUGE_CODE.sub("&amp;", text))


def _without_comments(text: str) -> str:
    """Remove comments; what was opened after the last end of one is none, and is not searched over and over."""
    end = text.rfind("-->") + len("-->")
    return COMMENT.sub(" ", text[:end]) + text[end:] if end >= len("-->") else text
