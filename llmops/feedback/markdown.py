"""A model's Markdown as HTML that can do nothing: no script, no link to press, no image to fetch.

markdown-it-py does the parsing with HTML off; links and images become text that shows where they point. The page's own
script keeps but the tags and classes that are made here (`page.js`), so one slip does not open the page.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

from markupsafe import escape

MOST_CHARACTERS = 100_000
"""Longer texts are shown as they are: nobody reads their layout, and drawing them costs the server."""

_BOLD = r"\*\*\S[^*\n]*\S\*\*(?!\w)"
_LISTED = r"^(?:[-*+]|\d{1,3}[.)]) \S.*\n(?:.*\n)*?(?:[-*+]|\d{1,3}[.)]) \S"
_MARKERS = re.compile(
    rf"^ {{0,3}}(?:```|~~~)|^\|?(?: *:?-{{3,}}:? *\|)+|{_BOLD}|`[^`\n]+`|\]\(\w|^#{{2,6}} \S|{_LISTED}",
    re.MULTILINE,
)
_CODE = re.compile(
    r"^(?:def|class|import|from \w+ import|#include|package|function|public|SELECT)\b", re.MULTILINE
)


def looks_like_markdown(text: str) -> bool:
    r"""Whether a text is written as Markdown: fences, tables, bold, code, links, headings or lists. Bare code is not.

    >>> looks_like_markdown("Use `len(x)`."), looks_like_markdown("def f(**a):\n    return `a`")
    (True, False)
    """
    if len(text) > MOST_CHARACTERS:
        return False
    fenced = re.search(r"^ {0,3}(?:```|~~~)", text, re.MULTILINE)
    return bool(_MARKERS.search(text)) and (fenced is not None or not _CODE.search(text))


def drawn(text: str) -> str:
    """A text's Markdown as harmless HTML."""
    html: str = _parser().render(text)
    return html


@cache
def _parser() -> Any:
    from markdown_it import MarkdownIt

    parser: Any = MarkdownIt("commonmark", {"html": False, "maxNesting": 20}).enable(
        ["table", "strikethrough"]
    )
    parser.validateLink = lambda _address: True  # every link is drawn alike, as text
    for name, rule in {
        "link_open": _link_open, "link_close": _link_close, "image": _image, "heading_open": _heading_open,
        "heading_close": _close("div"), "table_open": _table_open, "table_close": _table_close, "td_open": _cell,
        "th_open": _cell, "fence": _code, "code_block": _code, "ordered_list_open": _ordered,
    }.items():  # fmt: skip
        parser.add_render_rule(name, rule)
    return parser


def _link_open(*_: Any) -> str:
    return '<span class="link">'


def _link_close(_self: Any, tokens: Sequence[Any], i: int, *_rest: Any) -> str:
    opened = next(
        j for j in range(i, -1, -1) if tokens[j].type == "link_open" and tokens[j].level == tokens[i].level
    )
    inner = "".join(token.content for token in tokens[opened + 1 : i])
    address = str(tokens[opened].attrs.get("href", ""))
    shown = (
        ""
        if address.removeprefix("mailto:") == inner
        else f' <span class="address">({escape(address)})</span>'
    )
    return f"</span>{shown}"


def _image(_self: Any, tokens: Sequence[Any], i: int, *_rest: Any) -> str:
    said, address = tokens[i].content or "without a description", str(tokens[i].attrs.get("src", ""))
    return (
        f'<span class="image">image: {escape(said)} <span class="address">({escape(address)})</span></span>'
    )


def _heading_open(_self: Any, tokens: Sequence[Any], i: int, *_rest: Any) -> str:
    level = min(int(tokens[i].tag[1]) + 2, 6)  # below the page's own headings
    return f'<div class="heading" role="heading" aria-level="{level}">'


def _close(tag: str) -> Any:
    return lambda _self, _tokens, _i, *_rest: f"</{tag}>\n"


def _table_open(*_: Any) -> str:
    return '<div class="wide"><table>\n'


def _table_close(*_: Any) -> str:
    return "</table></div>\n"


def _cell(_self: Any, tokens: Sequence[Any], i: int, *_rest: Any) -> str:
    side = str(tokens[i].attrs.get("style", "")).removeprefix("text-align:")
    return f'<{tokens[i].tag} class="{side}">' if side in ("right", "center") else f"<{tokens[i].tag}>"


def _code(_self: Any, tokens: Sequence[Any], i: int, *_rest: Any) -> str:
    return f'<pre class="wide"><code>{escape(tokens[i].content)}</code></pre>\n'


def _ordered(_self: Any, tokens: Sequence[Any], i: int, *_rest: Any) -> str:
    start = tokens[i].attrs.get("start")
    return f'<ol start="{int(start)}">\n' if start is not None else "<ol>\n"
