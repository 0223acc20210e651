"""Where a model's update stands, as it is published (retained) on ``…/v2/repository/models/{model}/status``."""

from __future__ import annotations

from typing import Literal

import msgspec

# fetching: bytes come. fetched: they are all here, and as signed. tested: it runs here, within its budgets. pending:
# loaded beside the old one, then in service on probation. committed, rolled_back: the end of an update.
State = Literal["idle", "fetching", "fetched", "tested", "pending", "committed", "rolled_back"]
STATES: tuple[State, ...] = ("idle", "fetching", "fetched", "tested", "pending", "committed", "rolled_back")
Job = Literal["IDLE", "IN_PROGRESS", "SUCCEEDED", "FAILED"]  # in the words of AWS IoT Jobs


class Version(msgspec.Struct, frozen=True):
    """A release by number and file. release 0 is the file that int8d.toml names."""

    release: int = 0
    sha256: str = ""


class Reason(msgspec.Struct, frozen=True):
    """code: of ``agent.repository.reasons.CODES``."""

    code: str
    message: str


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """serving: what answers now. target: what the update is about, or the last one was. step: what is done about it.
    available: what the last check found to be due here.

    reason: of the last update that was rolled back. repository: why the last check failed, None where it did not;
    checked_unix_s: when it succeeded last. test, shadow, probation: what was measured of the target.
    """

    device: str
    model: str
    state: State = "idle"
    job: Job = "IDLE"
    step: str = ""
    serving: Version = Version()
    committed: Version = Version()
    previous: Version | None = None
    target: Version | None = None
    available: Version | None = None
    bytes: int = 0
    bytes_done: int = 0
    starts: int = 0
    reason: Reason | None = None
    repository: Reason | None = None
    checked_unix_s: float = 0.0
    test: dict[str, float] = {}
    shadow: dict[str, float] = {}
    probation: dict[str, float] = {}
    updated_unix_s: float = 0.0


def job_of(state: State) -> Job:
    """The state in the words of AWS IoT Jobs."""
    if state == "idle":
        return "IDLE"
    return "SUCCEEDED" if state == "committed" else "FAILED" if state == "rolled_back" else "IN_PROGRESS"


def percent(status: Status) -> int:
    """Of the target's bytes, how much is here: 0..100."""
    return min(100, max(0, 100 * status.bytes_done // status.bytes)) if status.bytes > 0 else 0


def every(prefix: str) -> str:
    """The topic filter of all devices' and models' statuses."""
    return f"{prefix}/+/v2/repository/models/+/status"


def place(topic: str, prefix: str) -> tuple[str, str]:
    """Device and model of a topic of ``every(prefix)``."""
    levels = topic.removeprefix(prefix + "/").split("/")
    return levels[0], levels[-2]


def parse(topic: str, payload: bytes, prefix: str) -> Status | None:
    """None for what is no status, and for one of another device or model than its topic's."""
    try:
        found = msgspec.json.decode(payload, type=Status)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return found if (found.device, found.model) == place(topic, prefix) else None
