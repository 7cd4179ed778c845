"""Who rates. Without keys in the workspace a name is enough; with them a key or a password opens a session in a cookie.

A session is a signed statement (key's id, end, HMAC under a salt of the database): a page that is killed and started
again, or a second one on the same database, knows it, and a revoked key ends it. Ratings carry a salted digest of the
name; addresses of raters are written nowhere.
"""

from __future__ import annotations

import hmac
import time
import unicodedata
from contextvars import ContextVar
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sqlalchemy import Engine

from llmops.auth import Key, Keys, Salts
from llmops.errors import BadRequest, LlmopsError
from llmops.ratings.raters import rater_id, require_rater
from llmops.records import OPEN, AccessRole, Principal
from llmops.schema import JsonDict
from llmops.settings import now

COOKIE = "llmops_session"
SESSION_S = 12 * 3600
"""How long a session lasts: a working day."""
ADMINS: tuple[AccessRole, ...] = ("operator", "admin")
RATERS: tuple[AccessRole, ...] = ("rater", *ADMINS)

presented: ContextVar[str] = ContextVar("presented", default="")
"""The Cookie header of the call that is answered."""


@dataclass(frozen=True)
class Caller:
    """Whoever asks: `rater` stands with ratings, `name` is what the page shows, `admin` may see all figures."""

    rater: str
    name: str
    admin: bool


class SignInNeeded(LlmopsError):
    """The workspace has keys, and the call carries none that is live."""


class SignIn(BaseModel):
    """What the browser sends to sign in."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: str = Field(default="", max_length=128)
    """Whose password it is."""
    password: str = Field(default="", max_length=1024)
    """The password that belongs to the name."""
    key: str = Field(default="", max_length=256)
    """A key instead of both."""


class Door:
    """Lets raters in, and says who a call is by."""

    def __init__(self, engine: Engine) -> None:
        """Use an open database."""
        self._keys = Keys(engine)
        self._salts = Salts(engine)

    def guarded(self) -> bool:
        """Whether a key or a password is needed."""
        return self._keys.required()

    def signed_in(self) -> bool:
        """Whether the call that is answered carries a live session."""
        return self._holder(presented.get()) is not None

    def caller(self, typed: str) -> Caller:
        """Who the call that is answered is by; `typed` is a name, which counts only where there are no keys.

        Raises:
            SignInNeeded: there are keys, and it carries no live session.
            BadRequest: `typed` is no name.
        """
        if not self.guarded():
            name = spelled(typed)
            return Caller(self.rater_id(name), name, OPEN.role in ADMINS)
        key = self._holder(presented.get())
        if key is None:
            raise SignInNeeded("page: your session has ended; sign in again")
        return Caller(self.rater_id(key.name), key.name, key.role in ADMINS)

    def rater_id(self, name: str) -> str:
        """What stands with the ratings of whoever has this name."""
        return rater_id(self._keys, name)

    def names(self) -> dict[str, str]:
        """The names of those who have keys or passwords, by what stands with their ratings."""
        return {self.rater_id(key.name): key.name for key in self._keys.list()}

    def open(self, said: JsonDict) -> str:
        """A cookie for whoever presents a key, or a name with its password.

        Raises:
            BadRequest: they open nothing here.
            SignInPaused: too many wrong passwords for that name came within a minute.
        """
        try:
            wish = SignIn.model_validate(said)
        except ValidationError as error:
            raise BadRequest(f"sign-in: {error.errors()[0]['msg']}; reload the page") from None
        principal = self._authenticated(wish)
        if principal is None or principal.key is None:
            raise BadRequest("sign-in: no live key or password like that; ask who runs the page")
        if principal.role not in RATERS:
            raise BadRequest(
                f"sign-in: a key of role {principal.role} opens no rating page; ask for one of role rater"
            )
        body = f"{principal.key}.{int(time.time()) + SESSION_S}"
        return f"{body}.{self._salts.digest('session', body)}"

    def _authenticated(self, wish: SignIn) -> Principal | None:
        if wish.key:
            return self._keys.authenticate(wish.key)
        return self._keys.sign_in(wish.name.strip(), wish.password)

    def _holder(self, header: str) -> Key | None:
        """The live key behind a Cookie header."""
        try:
            jar = SimpleCookie(header)
        except CookieError:
            return None
        body, _, mac = (jar[COOKIE].value if COOKIE in jar else "").rpartition(".")
        key_id, _, until = body.partition(".")
        # Signed by us, so what it says is of the form that was written.
        if not body or not hmac.compare_digest(mac.encode(), self._salts.digest("session", body).encode()):
            return None
        key = self._keys.find(key_id) if time.time() < int(until) else None
        return key if key is not None and key.live(now()) and key.role in RATERS else None


def spelled(name: str) -> str:
    """A typed name in one spelling, however the keyboard composed it.

    Raises:
        BadRequest: it is empty, too long or not printable.
    """
    found = " ".join(unicodedata.normalize("NFC", name).split())
    require_rater(found)
    return found
