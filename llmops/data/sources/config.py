"""Where rows come from, as YAML says it: files, a hub's dataset, an SQL query, an HTTP endpoint. Reads nothing.

What is secret is never written there: passwords, tokens and keys are named as environment variables.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Literal
from urllib.parse import parse_qsl, urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic_core import PydanticCustomError

from llmops.explain import HIDDEN_INPUT

SECRET_NAME = re.compile(
    r"(^|[_-])(pass(word|wd|phrase)?|sslpassword|pwd|token|secret|credentials?|apikey|key|sig|signature)$",
    re.IGNORECASE,
)
ENV_NAME = r"^[A-Za-z_][A-Za-z0-9_]*$"
EnvName = Annotated[str, Field(pattern=ENV_NAME)]


class SourceSettings(BaseModel):
    """Base of the kinds of source: unknown names are refused and values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class FilesSource(SourceSettings):
    """Rows of files: JSON lines, a JSON array, CSV or Parquet, told apart by their names' endings."""

    kind: Literal["files"]
    """Files of your own."""
    paths: tuple[str, ...] = Field(min_length=1)
    """Files, relative to the YAML file; the format of each is told from its rows."""


class HubSource(SourceSettings):
    """A dataset of the Hugging Face hub, or a folder that `datasets` can load."""

    kind: Literal["hub"]
    """What `datasets.load_dataset` reads."""
    dataset: str = Field(min_length=1)
    """The dataset's id (owner/name), or a folder, absolute or beginning with ./ or ../ (relative to the YAML file)."""
    config: str | None = None
    """The configuration (subset), where the dataset has several."""
    split: str = "train"
    """The split."""
    revision: str | None = None
    """A commit, branch or tag; without one the newest commit. Rows are frozen as they were read."""
    streaming: bool = False
    """Read over the network row by row instead of fetching the whole dataset to the cache first."""


class SqlSource(SourceSettings):
    """The rows of a query."""

    kind: Literal["sql"]
    """An SQL database, through SQLAlchemy."""
    url: str | None = None
    """SQLAlchemy URL without a password, such as postgresql://reader@host/name or sqlite:///rows.db (relative to the
    YAML file)."""
    password_env: EnvName | None = None
    """Environment variable that holds the password of `url`."""
    url_env: EnvName | None = None
    """Environment variable that holds the whole URL; give this or `url`."""
    query: str = Field(min_length=1)
    """A SELECT whose columns are a format's fields; it needs an ORDER BY, so that rows keep their places."""

    @field_validator("url")
    @classmethod
    def _no_secret(cls, value: str | None) -> str | None:
        return value if value is None else require_no_secret(value, "password_env or url_env")

    @field_validator("query")
    @classmethod
    def _ordered(cls, value: str) -> str:
        if not re.search(r"\border\s+by\b", value, re.IGNORECASE):
            raise ValueError("has no ORDER BY, so its rows have no places to name; add one")
        return value


class HttpSource(SourceSettings):
    """The rows an HTTP endpoint gives: JSON lines, or JSON in one page or many."""

    kind: Literal["http"]
    """An HTTP(S) endpoint."""
    url: str
    """The first page. Later ones are found by a Link header (rel="next"), by `next_field`, or by `page_param`."""
    rows_field: str | None = None
    """Field of a page's JSON object that holds its rows (dots lead inwards); None: the page is an array of rows."""
    next_field: str | None = None
    """Field of a page's JSON object that holds the next page's address, or with `next_param` what to ask for next;
    empty or missing on the last page."""
    next_param: str | None = None
    """Parameter of the address that takes what `next_field` holds (a cursor)."""
    page_param: str | None = None
    """Parameter of the address that counts pages, from `first_page` until a page has no rows."""
    first_page: int = Field(1, ge=0)
    """The number of the first page, for `page_param`."""
    header_env: Mapping[str, EnvName] = {}
    """Headers whose values stand in environment variables, such as {Authorization: MY_TOKEN}; only `url`'s host gets
    them."""
    max_bytes: int = Field(1 << 30, ge=1)
    """Most bytes of all pages together; more is an error."""
    max_s: float = Field(3600.0, gt=0)
    """Most seconds for all pages together; longer is an error."""
    answer_s: float = Field(60.0, gt=0)
    """Seconds to wait for an answer before it is asked again."""
    n_retries: int = Field(4, ge=0, le=20)
    """How often a page is asked for again: no answer, a broken one, or status 429, 500, 502, 503, 504."""

    @field_validator("url")
    @classmethod
    def _no_secret(cls, value: str) -> str:
        # Whoever stands before @ in a web address is a secret: a token as likely as a user.
        require_no_secret(value, "header_env", user=False)
        if not value.startswith(("http://", "https://")):
            raise ValueError("must begin with http:// or https://")
        return value

    @field_validator("next_param")
    @classmethod
    def _has_field(cls, value: str | None, info: object) -> str | None:
        if value is not None and getattr(info, "data", {}).get("next_field") is None:
            raise ValueError("needs next_field, which says what it takes")
        return value


ReadSource = FilesSource | HubSource | SqlSource | HttpSource


def require_no_secret(url: str, instead: str, user: bool = True) -> str:
    """Refuse an address that carries a password or key; the message does not show it.

    Args:
        url: the address.
        instead: names of the settings to use, for the message.
        user: whether a user's name alone may stand in it.

    Raises:
        PydanticCustomError: it carries one.
    """
    try:
        parts = urlsplit(url)
        secret = parts.password is not None or (parts.username is not None and not user)
        pairs = parse_qsl(parts.query, keep_blank_values=True)
    except ValueError:
        raise PydanticCustomError(HIDDEN_INPUT, "is no address; correct it") from None
    if secret or any(SECRET_NAME.search(name) or _ODBC_SECRET.search(value) for name, value in pairs):
        raise PydanticCustomError(
            HIDDEN_INPUT, "holds a password or key; put it into an environment variable and name that as {instead}",
            {"instead": instead},
        )  # fmt: skip
    return url


_ODBC_SECRET = re.compile(r"(?i)\bpwd\s*=")
