"""Who may do what here, and how much of it: what the gateway's front and its relay ask about every request.

| role | may |
|---|---|
| client | completions, models and the rest of /v1, under the public names its key names; /openapi.json |
| operator, admin | all of that under every name, `name@digest12` too, /llmops/* and /metrics |
| rater | nothing here: its keys open the rating page |

/healthz and /readyz need no key. Without any key everything is open, to this machine alone.
"""

from __future__ import annotations

import hashlib

from llmops.auth import Keys, Salts
from llmops.db import open_database
from llmops.errors import ConfigError
from llmops.listening import is_loopback
from llmops.records import OPEN, Principal
from llmops.serving.http import Header, Refusal, Scope
from llmops.serving.keyring import KeyRing
from llmops.serving.limits import UNSAID_ANSWER_TOKENS, Charge, LimitBook, today
from llmops.serving.profile import ServeProfile
from llmops.serving.request_log import Entry
from llmops.serving.requests import Call
from llmops.serving.routes import RouteTable
from llmops.serving.target import Target
from llmops.serving.usage import Amount, Line, UsageBook
from llmops.settings import Workspace, now

OPEN_PATHS = ("/healthz", "/readyz")
CLIENT_PATHS = ("/v1/", "/openapi.json")
OPERATORS = ("operator", "admin")
NOBODY = Principal(None, "local", "client", frozenset())
"""Whoever asks at a path that needs no key."""
_SHOWN = 100


class Access:
    """Access of one gateway: its keys, limits and usage."""

    def __init__(self, profile: ServeProfile, workspace: Workspace) -> None:
        """Prepare; `open` reads.

        Raises:
            LlmopsError: the database cannot be opened.
        """
        engine = open_database(workspace.database_url)
        self.ring = KeyRing(Keys(engine), Salts(engine))
        self.limits = LimitBook()
        self.usage = UsageBook(engine, self.limits)
        self._prices = profile.prices
        self._open_paths = (*OPEN_PATHS, "/metrics") if profile.open_metrics else OPEN_PATHS

    async def open(self) -> None:
        """Read keys and usage, and follow them.

        Raises:
            LlmopsError: the database cannot be read.
        """
        await self.ring.open()
        await self.usage.open()

    async def close(self) -> None:
        """End following, and write what was counted."""
        await self.ring.close()
        await self.usage.close()

    # ------------------------------------------------------------ who

    async def principal(self, scope: Scope, path: str, authorization: bytes | None) -> Principal:
        """Who asks for a path.

        Raises:
            Refusal: 401 without a key that is known here, 403 when its role may not ask for that.
        """
        if path in self._open_paths:
            return NOBODY
        if not self.ring.closed:
            _require_this_machine(scope)
            return OPEN
        found = await self.ring.who(_token(authorization))
        if found is None:
            raise _unauthorized("the key is not known here: it is wrong, was revoked or has expired")
        principal = found.principal
        if principal.role == "rater":
            raise Refusal(403, "a rater's key opens the rating page, not this address", code="wrong_role")
        if not path.startswith(CLIENT_PATHS) and principal.role not in OPERATORS:
            raise Refusal(403, f"{path[:_SHOWN]} needs an operator's key", code="wrong_role")
        return principal

    # ------------------------------------------------------------ how much

    def admit(self, principal: Principal) -> Charge | None:
        """Take one request from whoever asks.

        Raises:
            Refusal: 429 with the time to wait.
        """
        key = principal.key
        limits = None if key is None else self.ring.limits(key)
        return None if key is None or limits is None else self.limits.admit(key, limits)

    def limit_headers(self, principal: Principal) -> list[Header]:
        """How whoever asks stands with the limits of their key."""
        return [] if principal.key is None else self.limits.headers(principal.key)

    def accept(self, principal: Principal, call: Call, entry: Entry, table: RouteTable) -> None:
        """Let a request to a model through: its name is in scope, tokens are set aside, its prefix cache is its own.

        Raises:
            Refusal: 403 or 404 for a name out of scope, 429 with the time to wait.
        """
        require_model(principal, call.asked, table)
        if entry.charge is not None:
            self.limits.reserve(entry.charge, entry.n_prompt_estimate + _most_answer_tokens(call))
        if (salt := self.ring.cache_salt(principal.tenant)) is not None and principal.key is not None:
            _salt(call, salt)

    def settle(self, entry: Entry) -> None:
        """Count a request that is over, if it came to a model; shadow traffic is nobody's use."""
        spent = spent_by(entry)
        if entry.charge is not None:
            self.limits.settle(entry.charge, spent.n_prompt_tokens + spent.n_completion_tokens)
        if entry.arm == "shadow" or entry.answered_by is None or entry.model is None:
            return
        currency = ""
        if self._prices is not None:
            currency = self._prices.currency
            spent.cost = self._prices.cost(entry.model, spent.n_prompt_tokens, spent.n_completion_tokens)
        line = Line(
            today(), entry.key or "", entry.tenant or "local", entry.model, entry.answered_by, currency
        )
        self.usage.add(line, spent)


def require_guarded(host: str, keys: Keys) -> None:
    """Refuse to listen on an address that other machines reach while nobody has a key.

    Raises:
        ConfigError: there is no live key that could be asked for.
    """
    if is_loopback(host):
        return
    if not any(key.kind == "key" and key.role != "rater" and key.live(now()) for key in keys.list()):
        raise ConfigError(
            f"host: this address can be reached from other machines and there are no keys to keep them out "
            f"(found {host!r}); make one with `llmops key create NAME --role operator`, or use 127.0.0.1"
        )


def require_model(principal: Principal, asked: str, table: RouteTable) -> None:
    """Refuse a client a model that is not for it; what is out of its scope looks like what does not exist.

    Raises:
        Refusal: 403 for an immutable name, 404 for any other.
    """
    if principal.role in OPERATORS:
        return
    if "@" in asked:
        raise Refusal(
            403, "model names with a digest need an operator's key", param="model", code="wrong_role"
        )
    hidden = principal.names is not None and asked not in principal.names
    if hidden or (asked not in table.names and table.down is None):
        raise Refusal(
            404,
            f"model {asked[:_SHOWN]!r} does not exist, or this key may not use it; GET /v1/models lists what it may",
            param="model",
            code="model_not_found",
        )


def visible_targets(principal: Principal, table: RouteTable) -> dict[str, Target]:
    """What serves under the names that a key may use, public ones first."""
    names = principal.names
    found = {
        name: route.target
        for name, route in table.names.items()
        if route.target is not None and (names is None or name in names)
    }
    return {**found, **table.operator} if principal.role in OPERATORS else found


def spent_by(entry: Entry) -> Amount:
    """What one request used. Where the engine did not say, its text's size and the pieces that were sent count."""
    amount = Amount(n_requests=1, n_errors=int(entry.error is not None))
    n_prompt, n_completion = entry.n_prompt_tokens, entry.n_completion_tokens
    if n_prompt is None and n_completion is None:
        if entry.answered_by is None or not (entry.status == 200 or entry.status == 499):
            return amount  # refused before the engine worked on it
        amount.n_estimated = 1
        n_prompt, n_completion = entry.n_prompt_estimate, entry.n_pieces
    amount.n_prompt_tokens, amount.n_completion_tokens = n_prompt or 0, n_completion or 0
    return amount


def _token(authorization: bytes | None) -> str:
    if authorization is None:
        raise _unauthorized("send a key in the header Authorization: Bearer KEY, nowhere else")
    scheme, _, token = authorization.decode("latin-1").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise _unauthorized("the header Authorization is not of the form Bearer KEY")
    return token.strip()


def _unauthorized(said: str) -> Refusal:
    return Refusal(401, said, code="invalid_api_key")


def _require_this_machine(scope: Scope) -> None:
    """Refuse an address that others reach, whoever bound it, while there are no keys."""
    server = scope.get("server")
    host = server[0] if server else None
    if host is not None and not host.startswith("/") and not is_loopback(host):
        raise Refusal(403, "there are no keys yet, so only this machine is answered", code="no_keys")


def _most_answer_tokens(call: Call) -> int:
    """The most tokens that all answers to a request may have, as far as it says so."""
    given = call.body.get("max_completion_tokens") or call.body.get("max_tokens")
    n_tokens = given if isinstance(given, int) and given > 0 else UNSAID_ANSWER_TOKENS
    n_answers = max(call.body.get("n") or 1, call.body.get("best_of") or 1)
    prompt = call.body.get("prompt")
    n_prompts = len(prompt) if isinstance(prompt, list) and not isinstance(prompt[0], int) else 1
    return int(n_tokens * n_answers * n_prompts)


def _salt(call: Call, tenant_salt: str) -> None:
    """Part a tenant's prefix cache from the others'; a salt of the client's own parts it further."""
    given = call.body.get("cache_salt")
    if given is None:
        call.body["cache_salt"] = tenant_salt
        return
    if not isinstance(given, str) or not 1 <= len(given) <= 256:
        raise Refusal(
            400,
            "cache_salt: is not a text of 1 to 256 characters",
            param="cache_salt",
            code="invalid_field",
        )
    call.body["cache_salt"] = hashlib.sha256(f"{tenant_salt}\n{given}".encode()).hexdigest()
