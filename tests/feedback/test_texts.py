"""Texts on the page: Markdown that can do nothing, and answers that say who wrote them."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmops.feedback.markdown import MOST_CHARACTERS, drawn, looks_like_markdown
from llmops.feedback.naming import names_itself

TAGS = {
    "p", "pre", "code", "em", "strong", "s", "ul", "ol", "li", "blockquote", "hr", "br", "table", "thead", "tbody",
    "tr", "th", "td", "div", "span",
}  # fmt: skip
ATTRIBUTES = {"class", "role", "aria-level", "start"}
PIECES = [
    "<script>", "</script>", "<img src=x onerror=hit()>", "<svg/onload=hit()>", "[a](javascript:hit())", "![b](http://x/y)",
    "```", "~~~js", "`", "**", "_", "#", "- ", "1. ", "> ", "|", "---", "\n", "\n\n", "    ", "<a@b.c>", "<http://x>",
    '"', "'", "&lt;", "&", "[r]: http://x 't'", "[r]", "\\", "word", "onclick=", "</p>", "<!--", "data:text/html,x",
]  # fmt: skip


class Listing(HTMLParser):
    """Which tags and attributes a browser would see."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=25).map("".join))
def test_markdown_never_becomes_a_tag_that_does_something(text: str) -> None:
    listing = Listing(drawn(text))
    assert listing.tags <= TAGS
    assert listing.attributes <= ATTRIBUTES


def test_markdown_is_drawn_as_its_author_meant_it() -> None:
    html = drawn(
        "# Title\n\n1. **one**\n2. `x < y`\n\n```py\nprint('<b>')\n```\n\n| a | b |\n|:-:|--:|\n| 1 | 2 |\n"
    )
    assert '<div class="heading" role="heading" aria-level="3">Title</div>' in html
    assert "<li><strong>one</strong></li>" in html
    assert "<code>x &lt; y</code>" in html
    assert '<pre class="wide"><code>print(&#39;&lt;b&gt;&#39;)\n</code></pre>' in html
    assert '<th class="center">a</th>' in html
    assert '<td class="right">2</td>' in html


def test_links_and_images_are_text_that_shows_where_they_point() -> None:
    text = Listing(
        drawn("[here](https://a.example/x) ![cat](https://b.example/cat.png) <https://c.example>")
    ).text
    assert text.strip() == (
        "here (https://a.example/x) image: cat (https://b.example/cat.png) https://c.example"
    )


@pytest.mark.parametrize(("text", "is_markdown"), [
    ("Return the sum of two numbers.", False),
    ("def f(a, b):\n    # the sum\n    return a ** b ** 2", False),
    ("import os\n\n\n`x` = 1", False),
    ("2 * 3 * 4 = 24, __init__ and *args", False),
    ("x | y and a - b", False),
    ("Use `len`.", True),
    ("- one\n- two", True),
    ("First:\n```\ndef f(): pass\n```", True),
    ("## Steps\ndo it", True),
    ("| a | b |\n|---|---|\n| 1 | 2 |", True),
    ("**bold** words", True),
    ("`x` " * MOST_CHARACTERS, False),
])  # fmt: skip
def test_what_is_written_as_markdown_is_told_from_plain_text_and_code(text: str, is_markdown: bool) -> None:
    assert looks_like_markdown(text) == is_markdown


@pytest.mark.parametrize(("answer", "named"), [
    ("As an AI made by OpenAI, I cannot say.", ("As an AI made by OpenAI",)),
    ("Sure! as a large language model I have no body.", ("as a large language model",)),
    ("I am Claude, made by Anthropic.", ("I am Claude", "Anthropic")),
    ("I’m an AI assistant developed by Alibaba Cloud.", ("I’m an AI assistant developed by Alibaba Cloud",)),
    ("I was trained by Google.", ("I was trained by Google",)),
    ("My name is Qwen2.5-7B-Instruct.", ("My name is Qwen2.5-7B-Instruct",)),
    ("Llama 3.1 knows; docs@0123456789ab too.", ("Llama 3.1", "docs@0123456789ab")),
    ("Claude Monet painted a falcon. As an artist he was great.", ()),
    ("I am an airline pilot, as a matter of fact.", ()),
])  # fmt: skip
def test_an_answer_that_names_its_writer_is_found_and_others_are_not(
    answer: str, named: tuple[str, ...]
) -> None:
    assert names_itself(answer) == named


def test_a_name_that_the_prompt_speaks_of_gives_nothing_away() -> None:
    assert names_itself("GPT-4 is a model by OpenAI.", "Who made GPT-4?") == ("OpenAI",)
