"""Public names: what the ledger's release events say each one stands for.

The truth is the ledger; the states here are folded from it and never stored.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace

from llmops.errors import InvalidEvidence
from llmops.ledger import Anchor, Event, EventKind, Ledger
from llmops.records import Approval, Release, Rollout
from llmops.registry.adapters import Registry
from llmops.schema import short
from llmops.store import Store, kind_of

ANCHORED: tuple[type[Release | Approval | Rollout], ...] = (Release, Approval, Rollout)
"""Records that carry the ledger's head out of the database."""
RELEASE_KINDS: tuple[EventKind, ...] = ("release.requested", "release.activated", "release.refused")


@dataclass(frozen=True)
class NameState:
    """What the ledger says of one public name.

    `history` holds the activated releases that a rollback can return to, the champion's last. `pending` is a request
    (ledger number, release) the gateway has not answered; `refusal` says why the newest request was refused.
    """

    name: str
    history: tuple[Release, ...] = ()
    pending: tuple[int, Release] | None = None
    refusal: str | None = None

    @property
    def champion(self) -> Release | None:
        """The release in force."""
        return self.history[-1] if self.history else None

    @property
    def champion_adapter(self) -> str | None:
        """Digest of the adapter the name stands for."""
        return self.history[-1].adapter if self.history else None

    def baseline_for(self, candidate: str, base: str) -> str:
        """Digest of what a candidate is compared with: the champion, or the base while there is none.

        The champion itself is compared with the base: it is measured anew, on another engine or after an override.
        """
        champion = self.champion_adapter
        return base if champion is None or champion == candidate else champion

    def after(self, release: Release) -> tuple[Release, ...]:
        """The history once `release` is activated; one of the champion itself takes the champion's place.

        A release that was in force before is in force again, with those before it: `llmops engine back`.
        """
        if release.kind == "rollback":
            return self.history[:-1]
        if release in self.history:
            return self.history[: self.history.index(release) + 1]
        kept = self.history[:-1] if self.champion_adapter == release.adapter else self.history
        return (*kept, release)

    @property
    def previous(self) -> Release | None:
        """The release a rollback returns to."""
        return self.history[-2] if len(self.history) > 1 else None


def name_states(store: Store, ledger: Ledger) -> dict[str, NameState]:
    """The state of every public name, folded from the ledger.

    Raises:
        InvalidEvidence: a release record is missing or was altered.
    """
    return fold_releases(store, ledger.events(*RELEASE_KINDS))


def fold_releases(store: Store, events: Iterable[Event]) -> dict[str, NameState]:
    """The state of every public name that these release events (RELEASE_KINDS, oldest first) are about.

    Raises:
        InvalidEvidence: a release record is missing or was altered.
    """
    states: dict[str, NameState] = {}
    for event in events:
        name = str(event.body["public_name"])
        states[name] = _step(states.get(name, NameState(name)), event, store)
    return states


def readable_states(store: Store, events: Iterable[Event]) -> tuple[dict[str, NameState], dict[str, str]]:
    """The state of every name whose releases can be read, and by name why the others cannot.

    Each name is folded alone: a damaged release stops its own name only.
    """
    by_name: dict[str, list[Event]] = {}
    for event in events:
        by_name.setdefault(str(event.body["public_name"]), []).append(event)
    states: dict[str, NameState] = {}
    damaged: dict[str, str] = {}
    for name, about in by_name.items():
        try:
            states |= fold_releases(store, about)
        except InvalidEvidence as error:
            damaged[name] = str(error)
    return states, damaged


def _step(state: NameState, event: Event, store: Store) -> NameState:
    release = store.get_record(Release, str(event.body["release"]))
    if event.kind == "release.requested":
        return replace(state, pending=(event.seq, release), refusal=None)
    if event.kind == "release.refused":
        return replace(state, pending=None, refusal=str(event.body["reason"]))
    return replace(state, history=state.after(release), pending=None, refusal=None)


def name_state(registry: Registry, name: str) -> NameState:
    """The state of one public name; empty when nothing was ever released under it."""
    # Folded alone: a damaged release of another name must not keep this one from moving.
    about = [e for e in registry.ledger.events(*RELEASE_KINDS) if e.body["public_name"] == name]
    return fold_releases(registry.store, about).get(name, NameState(name))


def release_anchors(store: Store) -> list[Anchor]:
    """The ledger heads that release and approval records carry, for `Ledger.verify`.

    Raises:
        InvalidEvidence: a record is gone or altered.
    """
    return [_anchor(store, cls, d) for cls in ANCHORED for d in store.digests(kind_of(cls))]


def readable_anchors(store: Store) -> list[Anchor]:
    """`release_anchors` of the records that can be read; one that cannot stops its own name elsewhere."""
    anchors = []
    for cls in ANCHORED:
        for digest in store.digests(kind_of(cls)):
            with suppress(InvalidEvidence):
                anchors.append(_anchor(store, cls, digest))
    return anchors


def _anchor(store: Store, cls: type[Release | Approval | Rollout], digest: str) -> Anchor:
    record = store.get_record(cls, digest)
    if isinstance(record, Approval):
        what = f"the approval of decision {short(record.decision)}"
    else:
        what = f"the {'release' if isinstance(record, Release) else 'rollout'} of {record.public_name}"
    return Anchor(record.ledger_seq, record.ledger_head, f"{what} at {record.created_at}")
