"""The relational tables, as Alembic's revisions (`llmops/migrations/`) make them; `llmops.db` connects to them."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    true,
)

metadata = MetaData()

events = Table(
    "events",
    metadata,
    Column("seq", Integer, primary_key=True, autoincrement=False),
    Column("at", String(32), nullable=False),
    Column("kind", String(64), nullable=False, index=True),
    Column("body", Text, nullable=False),
    Column("prev", String(64), nullable=False),
    Column("hash", String(64), nullable=False, unique=True),
)

showings = Table(
    "showings",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("campaign", String(64), nullable=False),
    Column("item", String(64), nullable=False),
    Column("rater", String(128), nullable=False),
    Column("left", Integer, nullable=False),
    Column("at", String(32), nullable=False),
    Column("first_at", String(32), nullable=True),
    # False is answered; the queue reads the others alone.
    Column("open", Boolean, nullable=False, server_default=true()),
    Index("ix_showings_campaign_item", "campaign", "item"),
    Index("ix_showings_open", "campaign", "open"),
)

ratings = Table(
    "ratings",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("digest", String(64), nullable=False, unique=True),
    Column("campaign", String(64), nullable=False),
    Column("item", String(64), nullable=False),
    Column("rater", String(128), nullable=False),
    Column("showing", String(32), nullable=False),
    Column("left", Integer, nullable=False),
    Column("choice", String(16), nullable=False),
    Column("at", String(32), nullable=False),
    Column("supersedes", String(64), nullable=True),
    Column("live", Boolean, nullable=False),
    Column("tags", Text, nullable=True),
    Column("scores", Text, nullable=True),
    Column("note", String(64), nullable=True),
    Column("edit", String(64), nullable=True),
    Column("pins", String(64), nullable=True),
    Column("dwell_ms", Integer, nullable=True),
    Column("key", String(64), nullable=True),
    Index("ix_ratings_campaign_item", "campaign", "item"),
    Index("uq_ratings_key", "showing", "key", unique=True),  # rows without a key are all different
)
# One rater has one live rating of an item; what it supersedes stays, no longer live.
Index(
    "uq_ratings_live", ratings.c.campaign, ratings.c.item, ratings.c.rater, unique=True,
    sqlite_where=ratings.c.live, postgresql_where=ratings.c.live,
)  # fmt: skip

# What people wrote: deleted on demand, while the salted digests in their ratings stay.
rating_texts = Table(
    "rating_texts",
    metadata,
    Column("rating", String(64), primary_key=True),
    Column("field", String(8), primary_key=True),
    Column("salt", String(32), nullable=False),
    Column("text", Text, nullable=False),
)

# Prompts and answers of items that are not frozen in the store: captured and typed ones.
item_texts = Table(
    "item_texts",
    metadata,
    Column("campaign", String(64), primary_key=True),
    Column("item", String(64), primary_key=True),
    Column("place", Integer, nullable=False),
    Column("owner", String(128), nullable=True),
    Column("key", String(16), nullable=True),
    Column("body", Text, nullable=False),
    Column("at", String(32), nullable=False),
    Index("ix_item_texts_owner", "owner"),
)

withdrawn_raters = Table(
    "withdrawn_raters",
    metadata,
    Column("rater", String(128), primary_key=True),
    Column("at", String(32), nullable=False),
    Column("reason", Text, nullable=True),
    Column("event", Integer, nullable=False),
    Column("texts_deleted", Boolean, nullable=False),
)

access_keys = Table(
    "access_keys",
    metadata,
    Column("id", String(16), primary_key=True),
    Column("revision", Integer, nullable=False, unique=True),
    Column("name", String(128), nullable=False),
    Column("kind", String(8), nullable=False),
    Column("hash", String(256), nullable=False, unique=True),
    Column("role", String(16), nullable=False),
    Column("tenant", String(64), nullable=False),
    Column("names", Text, nullable=True),
    Column("requests_per_minute", BigInteger, nullable=True),
    Column("tokens_per_minute", BigInteger, nullable=True),
    Column("tokens_per_day", BigInteger, nullable=True),
    Column("created_at", String(32), nullable=False),
    Column("expires_at", String(32), nullable=True),
    Column("revoked_at", String(32), nullable=True),
)
_live_password = (access_keys.c.kind == "password") & access_keys.c.revoked_at.is_(None)
Index(
    "uq_access_keys_password", access_keys.c.name, unique=True,
    sqlite_where=_live_password, postgresql_where=_live_password,
)  # fmt: skip

salts = Table(
    "salts",
    metadata,
    Column("purpose", String(16), primary_key=True),
    Column("value", String(64), nullable=False),
)

usage = Table(
    "usage",
    metadata,
    Column("day", String(10), primary_key=True),
    Column("key", String(16), primary_key=True),
    Column("tenant", String(64), primary_key=True),
    Column("model", String(200), primary_key=True),
    Column("adapter", String(64), primary_key=True),
    Column("currency", String(8), primary_key=True),
    Column("n_requests", BigInteger, nullable=False),
    Column("n_errors", BigInteger, nullable=False),
    Column("n_estimated", BigInteger, nullable=False),
    Column("n_prompt_tokens", BigInteger, nullable=False),
    Column("n_completion_tokens", BigInteger, nullable=False),
    Column("cost", Float, nullable=False),
)


# Who answered, for every response; its texts, of a sample, encrypted; and what people said of it, texts encrypted too.
responses = Table(
    "responses",
    metadata,
    Column("id", String(128), primary_key=True),
    Column("at", String(32), nullable=False, index=True),
    Column("tenant", String(64), nullable=False),
    Column("user", String(32), nullable=True),
    Column("asked", String(200), nullable=False),
    Column("adapter", String(64), nullable=False),
    Column("lineage", String(64), nullable=True),
    Column("arm", String(64), nullable=True),
    Column("shadow_of", String(128), nullable=True),
    Column("n_answers", Integer, nullable=False),
    Column("complete", Boolean, nullable=False),
)

captures = Table(
    "captures",
    metadata,
    Column("response", String(128), primary_key=True),
    Column("at", String(32), nullable=False, index=True),
    Column("key", String(16), nullable=False),
    Column("payload", Text, nullable=False),
    Column("n_bytes", Integer, nullable=False),
    Column("n_redacted", Integer, nullable=False),
)

feedback = Table(
    "feedback",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("id", String(32), nullable=False, unique=True),
    Column("response", String(128), nullable=False, index=True),
    Column("choice", Integer, nullable=False),
    Column("tenant", String(64), nullable=False),
    Column("user", String(32), nullable=True),
    Column("at", String(32), nullable=False),
    Column("thumb", String(8), nullable=True),
    Column("score", Integer, nullable=True),
    Column("over", String(128), nullable=True),
    Column("over_choice", Integer, nullable=True),
    Column("corrected", Boolean, nullable=False),
    Column("digest", String(64), nullable=False),
    Column("idempotency", String(128), nullable=True),
    Column("key", String(16), nullable=True),
    Column("payload", Text, nullable=True),
    Index("uq_feedback_idempotency", "tenant", "idempotency", unique=True),
)


# What followers counted of a canary since they last said so; the leading gateway takes the rows away.
arm_counts = Table(
    "arm_counts",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("at", String(32), nullable=False),
    Column("rollout", String(64), nullable=False),
    Column("step", Integer, nullable=False),
    Column("arm", String(64), nullable=False),
    Column("n_requests", Integer, nullable=False),
    Column("n_errors", Integer, nullable=False),
    Column("waits_ms", Text, nullable=False),
)
