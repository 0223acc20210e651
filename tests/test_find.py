"""Which release of a verified repository a device should have."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest
from tuf.api.metadata import Root, Snapshot, TargetFile, Targets, Timestamp

from agent.config.tables import Updates
from agent.repository.find import Ask, Found, choose
from agent.repository.reasons import Refused
from agent.repository.release import Release, Rollout, Stage, custom_of, place
from agent.repository.trust import Trusted

NOW = 1_800_000_000.0
NOT_YET, ALL, STOPPED = Rollout((Stage(0.0),)), Rollout(), Rollout(aborted=True)


def _name(release: Release) -> str:
    group = f"{release.device_group}/" if release.device_group else ""
    return f"{release.model}/{group}{release.release}.{release.encryption}"


def _sha256(release: Release) -> str:
    return hashlib.sha256(_name(release).encode()).hexdigest()


def _found(*releases: Release, **ask: object) -> Found:
    """What is chosen; settings of ``Updates`` begin with ``_``."""
    settings = {key[1:]: ask.pop(key) for key in list(ask) if key.startswith("_")}
    files = {
        _name(r): TargetFile(1000 * r.release, {"sha256": _sha256(r)}, _name(r), {"custom": custom_of(r)})
        for r in releases
    }
    files["readme.txt"] = TargetFile(1, {"sha256": "0" * 64}, "readme.txt")
    expires = datetime.now(UTC) + timedelta(1)
    targets = Targets(expires=expires, targets=files)
    trusted = Trusted(Root(consistent_snapshot=True), Timestamp(), Snapshot(), targets, NOW)
    whole = {"folder": "", "device": "box1", "model": "digits", "settings": Updates(**settings), **ask}  # type: ignore[arg-type]
    return choose(Ask(**whole), trusted)  # type: ignore[arg-type]


def _release(number: int, rollout: Rollout = ALL, group: str = "", withdrawn: str = "", **more: object) -> Release:
    return Release(**{"model": "digits", "release": number, "rollout": rollout, "device_group": group,
                      "withdrawn": withdrawn, **more})  # type: ignore[arg-type]  # fmt: skip


def _number(found: Found) -> int | None:
    return None if found.target is None else found.target.release.release


def test_the_highest_newer_release_is_due() -> None:
    found = _found(*map(_release, (1, 10, 9)), committed=2)
    assert _number(found) == 10
    assert found.target is not None
    assert found.target.path == f"digits/{found.target.sha256}.10.none"
    assert found.target.bytes == 10_000


def test_a_lower_release_is_never_due() -> None:
    found = _found(_release(1), _release(2), committed=2)
    assert _number(found) is None
    assert found.why == "no newer release"


def test_other_models_and_groups_are_not_this_devices() -> None:
    others = _release(8, group="kitchen"), _release(9, model="numbers")
    assert _number(_found(_release(1), *others)) == 1
    assert _number(_found(_release(1), *others, _device_group="kitchen")) == 8


def test_a_groups_own_file_comes_before_that_for_all() -> None:
    found = _found(_release(3), _release(3, group="kitchen"), _device_group="kitchen")
    assert found.target is not None
    assert found.target.release.device_group == "kitchen"


@pytest.mark.parametrize(("key", "encryption"), [(None, "none"), ("/key", "age")])
def test_of_one_releases_two_forms_the_one_that_can_be_read_comes(key: str | None, encryption: str) -> None:
    found = _found(_release(3), _release(3, encryption="age"), _key=key)
    assert found.target is not None
    assert found.target.release.encryption == encryption


def test_a_rollout_that_has_not_come_here_leaves_the_newest_that_has() -> None:
    found = _found(_release(3), _release(4, NOT_YET), committed=2)
    assert _number(found) == 3
    assert found.waiting is not None
    assert found.waiting.release.release == 4


def test_a_rollout_comes_to_a_device_by_its_place_and_the_repositorys_time() -> None:
    at = place("box1", "")
    before, after = Stage(at - 0.001, int(NOW) - 10), Stage(at + 0.001, int(NOW) + 10)
    waiting = _found(_release(3, Rollout((before, after))))
    assert _number(waiting) is None
    assert "has not come to this device yet" in waiting.why
    assert _number(_found(_release(3, Rollout((before, Stage(at + 0.001, int(NOW) - 5)))))) == 3


def test_a_stopped_or_withdrawn_release_is_not_due() -> None:
    assert _number(_found(_release(3), _release(4, STOPPED), _release(5, withdrawn="broken"))) == 3
    assert "was stopped" in _found(_release(4, STOPPED)).why


def test_what_was_rolled_back_here_does_not_come_again_by_itself() -> None:
    bad = _release(4)
    assert _number(_found(_release(3), bad, refused=[_sha256(bad)])) == 3
    assert _number(_found(bad, refused=[_sha256(bad)])) is None
    assert _number(_found(bad, refused=[_sha256(bad)], wanted=4)) == 4


def test_a_committed_release_that_was_taken_back_is_told() -> None:
    bad = _release(4, withdrawn="forgets sevens")
    assert _found(_release(3), bad, committed=4, committed_sha256=_sha256(bad)).withdrawn == "forgets sevens"
    assert _found(_release(3), bad, committed=3, committed_sha256=_sha256(_release(3))).withdrawn == ""


def test_asked_for_by_a_person_a_rollout_is_not_waited_for() -> None:
    assert _number(_found(_release(3, NOT_YET), wanted=3)) == 3


@pytest.mark.parametrize(
    ("releases", "wanted", "code"),
    [
        ([_release(1), _release(2)], 1, "release_rollback"),
        ([_release(2)], 7, "not_found"),
        ([_release(3, withdrawn="broken")], 3, "withdrawn"),
        ([_release(3, STOPPED)], 3, "withdrawn"),
    ],
)
def test_what_a_person_can_not_have_is_refused(releases: list[Release], wanted: int, code: str) -> None:
    with pytest.raises(Refused) as caught:
        _found(*releases, committed=2, wanted=wanted)
    assert caught.value.code == code


def test_only_a_chosen_release_can_be_too_large() -> None:
    assert _number(_found(_release(3), _release(4, NOT_YET), _max_bytes=3000)) == 3
    with pytest.raises(Refused, match=r"updates\.max_bytes") as caught:
        _found(_release(3), _release(4), _max_bytes=3000)
    assert caught.value.code == "too_large"


def test_asking_for_a_step_imports_none_of_what_the_step_needs() -> None:
    script = (
        "import sys, agent.repository.find, agent.repository.fetch, agent.updates.child\n"
        "print([m for m in ('tuf', 'urllib3', 'cryptography', 'securesystemslib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout.strip() == "[]"
