"""What is kept of served answers and what people say of them: encrypted, redacted, and deleted when its time is over.

Three tables: `responses` (who answered, for every response id, without texts), `captures` (texts of a sample) and
`feedback`. None of it is in the ledger's chain. `serving` writes here; campaigns, exports and `eval grow` read.
"""

from llmops.capture.interaction import Feedback, Given, Interaction
from llmops.capture.keyring import Keyring
from llmops.capture.live import ServedVotes
from llmops.capture.pairs import CapturedPair, captured_pairs
from llmops.capture.reading import Filter, feedback_rows, interactions

__all__ = [
    "CapturedPair",
    "Feedback",
    "Filter",
    "Given",
    "Interaction",
    "Keyring",
    "ServedVotes",
    "captured_pairs",
    "feedback_rows",
    "interactions",
]
