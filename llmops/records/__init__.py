"""The frozen records that pass between stages: data, models, evaluation, feedback, decisions and releases.

Nothing here reads or writes files; `llmops.schema` says how a record is spelt and hashed.
"""

from llmops.records.access import OPEN, AccessRole, Principal
from llmops.records.data import DatasetSnapshot, Dropped, Labelled, Message, Row, ToolCall
from llmops.records.evaluation import Better, Case, Completion, MetricResult, Report
from llmops.records.feedback import (
    Campaign,
    Choice,
    Item,
    Preference,
    PreferenceSnapshot,
    Purpose,
    Rating,
    RatingEvidence,
)
from llmops.records.judgement import Figure, JudgeCalibration, JudgeEvidence, Judgement, JudgementSet, Place
from llmops.records.models import (
    AdapterRecord,
    EngineSignature,
    Lineage,
    Probes,
    PromptContract,
    RewardProbes,
)
from llmops.records.quality import CheckResult, EvalText, Offence, QualityReport
from llmops.records.release import Approval, Check, CheckKind, Decision, Release, Role, Verdict

__all__ = [
    "OPEN",
    "AccessRole",
    "AdapterRecord",
    "Approval",
    "Better",
    "Campaign",
    "Case",
    "Check",
    "CheckKind",
    "CheckResult",
    "Choice",
    "Completion",
    "DatasetSnapshot",
    "Decision",
    "Dropped",
    "EngineSignature",
    "EvalText",
    "Figure",
    "Item",
    "JudgeCalibration",
    "JudgeEvidence",
    "Judgement",
    "JudgementSet",
    "Labelled",
    "Lineage",
    "Message",
    "MetricResult",
    "Offence",
    "Place",
    "Preference",
    "PreferenceSnapshot",
    "Principal",
    "Probes",
    "PromptContract",
    "Purpose",
    "QualityReport",
    "Rating",
    "RatingEvidence",
    "Release",
    "Report",
    "RewardProbes",
    "Role",
    "Row",
    "ToolCall",
    "Verdict",
]
