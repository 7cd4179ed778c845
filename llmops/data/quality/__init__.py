"""Quality of training rows: duplicates, personal data, language, length, and cases of suites among them.

`assess` runs the checks a `Quality` block asks for and gives the report with the rows that stay; `require_clean`
refuses what a gate refuses. Where cases come from is in `llmops.data.quality.suites`.
"""

from llmops.data.quality.checks import Against, Assessed, Surroundings, assess, require_clean
from llmops.data.quality.config import CHECKS, Quality

__all__ = ["CHECKS", "Against", "Assessed", "Quality", "Surroundings", "assess", "require_clean"]
