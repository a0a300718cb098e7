"""Removal of HTML from texts, leaving what only looks like HTML."""

import html
import re

TAG_NAMES = (
    "a|abbr|acronym|address|article|aside|b|big|blockquote|body|br|button|caption|center|cite|code|col|colgroup|dd|del|"
    "details|dfn|div|dl|dt|em|embed|fieldset|figcaption|figure|font|footer|form|frame|frameset|h[1-6]|head|header|hr|"
    "html|i|iframe|img|input|ins|kbd|label|legend|li|link|main|map|mark|meta|nav|nobr|noscript|object|ol|optgroup|"
    "option|p|param|picture|pre|q|s|samp|script|section|select|small|source|span|strike|strong|style|sub|summary|sup|"
    "svg|table|tbody|td|textarea|tfoot|th|thead|time|title|tr|tt|u|ul|var|video|wbr"
)
# After its name a tag has attributes or ends, so "x<b and c>d" is none.
ATTRIBUTE = r"""\s+[\w:-]+\s*=\s*(?:"[^"<>]*"|'[^'<>]*'|[^\s"'<>]+)|\s+(?:checked|disabled|nowrap|noshade|selected)"""
TAG = re.compile(rf"</?(?:{TAG_NAMES})(?:{ATTRIBUTE})*\s*/?>|<!doctype[^<>]*>", re.IGNORECASE)
# `#39;`, an entity that lost its `&`. Only the codes of punctuation: "ticket #1234;" is no entity.
LOST_AMPERSAND = re.compile(r"(?<!&)#(3[3-9]|4[0-7]|6[0-4]|9[1-6]|1[45]\d|16\d|82[0-4]\d|8364);")
COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
HUGE_CODE = re.compile(r"&(?=#[0-9]{9})")  # not a character, and too long for Python to parse


def clean_html(text: str) -> str:
    """Remove HTML tags and comments from a text, and decode its entities; "<3" and "a < b" are no tags."""
    text = LOST_AMPERSAND.sub(r"&#\1;", text)
    for _ in range(2):  # `&amp;lt;b&amp;gt;` is common
        text = html.unescape(HUGE_CODE.sub("&amp;", text))
    # Behind the last end of a comment there is none, and searching there takes quadratic time.
    end = text.rfind("-->") + len("-->")
    if end >= len("-->"):
        text = COMMENT.sub(" ", text[:end]) + text[end:]
    return TAG.sub(" ", text)
