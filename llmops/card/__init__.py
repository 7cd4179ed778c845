"""Model cards written from the record alone: every statement is a claim that names the record it was read from.

Reads registry, store and ledger; a card can be held against them again at any time.
"""

from llmops.card.check import Checked, check_card
from llmops.card.render import render_card

__all__ = ["Checked", "check_card", "render_card"]
