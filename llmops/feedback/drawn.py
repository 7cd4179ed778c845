"""What the browser is told of an item: texts as they stand, Markdown as harmless HTML, phrases that name a writer.

Which answer is which system's, on which side it was put, when and how fast it came: none of that passes here.
"""

from __future__ import annotations

from collections.abc import Sequence

from llmops.feedback.markdown import drawn, looks_like_markdown
from llmops.feedback.naming import names_itself
from llmops.feedback.rubric import Rubric
from llmops.ratings.book import Showing
from llmops.schema import JsonDict


def item_told(showing: Showing, rubric: Rubric) -> JsonDict:
    """A showing as the page draws it: `html` is None where a text is shown as it is."""
    item = showing.item
    prompt = "\n".join(message.content for message in item.messages)
    messages = []
    for message in item.messages:
        (html,) = _drawn([message.content], rubric.prompts)
        messages.append({**message.to_turn(), "html": html})
    answers = [
        {"text": text, "html": html, "named": list(names_itself(text, prompt))}
        for text, html in zip(showing.texts, _drawn(showing.texts, rubric.answers), strict=True)
    ]
    return {"showing": showing.id, "messages": messages, "answers": answers}


def _drawn(texts: Sequence[str], how: str) -> list[str | None]:
    """The texts' HTML, all or none: answers that are compared must look alike."""
    if how == "markdown" or (how == "auto" and any(looks_like_markdown(text) for text in texts)):
        return [drawn(text) for text in texts]
    return [None for _ in texts]
