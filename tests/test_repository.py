"""The repository of releases, read by python-tuf's own client."""

from __future__ import annotations

import json
import multiprocessing
import shutil
from pathlib import Path

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.exceptions import ExpiredMetadataError, RepositoryError, UnsignedMetadataError
from tuf.api.metadata import Metadata

from agent.errors import Int8dError
from agent.repository.release import ISSUED, Rollout, Stage, release_of
from models.repository.expiry import Expiry
from models.repository.keys import ROLES, Keys
from models.repository.repository import opened
from models.repository.rollout import abort, set_stages, stages
from models.repository.upkeep import prune, rotate
from tests.agent_process import DIGITS
from tests.repository import Repo, make
from tests.variants import variant

ONE = "digits/1.int8.safetensors"


@pytest.fixture
def repo(tmp_path: Path) -> Repo:
    repo = make(tmp_path)
    repo.publish(DIGITS, 1)
    return repo


def seen(repo: Repo, state: Path, path: str = ONE) -> object:
    """What a client finds described there."""
    client = repo.client(state)
    client.refresh()
    target = client.get_targetinfo(path)
    return target and release_of(target.custom)


def document(repo: Repo, name: str) -> Metadata:
    return Metadata.from_bytes((repo.folder / "metadata" / name).read_bytes())


def test_an_empty_repository_is_accepted(tmp_path: Path) -> None:
    assert seen(make(tmp_path), tmp_path / "box") is None


def test_a_client_downloads_what_was_published(repo: Repo, tmp_path: Path) -> None:
    client = repo.client(tmp_path / "box")
    target = client.get_targetinfo(ONE)
    assert target is not None
    assert Path(client.download_target(target)).read_bytes() == DIGITS.read_bytes()


def test_what_is_published_reads_back_with_its_fractions(repo: Repo, tmp_path: Path) -> None:
    rollout = Rollout((Stage(0.1), Stage(12.5, 1_900_000_000)), "salt", 0.05)
    published = repo.publish(variant(tmp_path, 1), 2, rollout=rollout)
    assert published.rollout == rollout
    assert seen(repo, tmp_path / "box", "digits/2.int8.safetensors") == published


def test_a_client_follows_each_change(repo: Repo, tmp_path: Path) -> None:
    box = tmp_path / "box"
    assert seen(repo, box)
    repo.publish(variant(tmp_path, 1), 2)
    assert seen(repo, box, "digits/2.int8.safetensors")
    repo.refresh()
    assert seen(repo, box)
    repo.revoke(2, "wrong labels")
    assert seen(repo, box, "digits/2.int8.safetensors").withdrawn == "wrong labels"
    with opened(repo.folder, Keys(repo.keys)) as repository:
        set_stages(repository, repository.find("digits", 1), stages("5%", 0))
    assert seen(repo, box).rollout.stages == (Stage(5.0),)
    with opened(repo.folder, Keys(repo.keys)) as repository:
        abort(repository, repository.find("digits", 1))
    assert seen(repo, box).rollout.percent(1e10) == 0
    with opened(repo.folder, Keys(repo.keys)) as repository:
        set_stages(repository, repository.find("digits", 1), stages("10%", 0))
    assert seen(repo, box).rollout.percent(1e10) == 10


def test_a_client_that_was_away_for_many_versions_follows(repo: Repo, tmp_path: Path) -> None:
    box, model = tmp_path / "box", variant(tmp_path, 1)
    assert seen(repo, box)
    for number in range(2, 15):
        repo.publish(model, number)
    assert seen(repo, box, "digits/14.int8.safetensors")
    assert len(list((repo.folder / "metadata").glob("*.targets.json"))) == 8


def test_timestamp_says_when_it_was_signed_and_what_the_snapshot_is(repo: Repo) -> None:
    timestamp = document(repo, "timestamp.json").signed
    assert timestamp.expires.timestamp() - timestamp.unrecognized_fields[ISSUED] == pytest.approx(3 * 86400, abs=2)
    for meta, role in (
        (timestamp.snapshot_meta, "snapshot"),
        (document(repo, f"{timestamp.snapshot_meta.version}.snapshot.json").signed.meta["targets.json"], "targets"),
    ):
        data = (repo.folder / "metadata" / f"{meta.version}.{role}.json").read_bytes()
        assert meta.length == len(data)
        meta.verify_length_and_hashes(data)


@pytest.mark.parametrize("role", ROLES)
def test_clients_old_and_new_follow_a_replaced_key(repo: Repo, tmp_path: Path, role: str) -> None:
    assert seen(repo, tmp_path / "old")
    before = document(repo, "1.root.json").signed.roles[role].keyids
    repo.rotate(role)
    after = document(repo, "2.root.json").signed.roles[role].keyids
    assert not set(before) & set(after)
    assert len(before) == len(after)
    for number in (2, 3):
        assert seen(repo, tmp_path / "old")
        assert seen(repo, tmp_path / "new")
        repo.publish(DIGITS, number)
    assert seen(repo, tmp_path / "old", "digits/3.int8.safetensors")


def test_a_replaced_key_signs_no_more(repo: Repo) -> None:
    old = repo.keys / "online"
    kept = {path.name: path.read_bytes() for path in old.glob("targets-*.pem")}
    repo.rotate("targets")
    for path in old.glob("targets-*.pem"):
        path.unlink()
    for name, pem in kept.items():
        (old / name).write_bytes(pem)
    with pytest.raises(Int8dError, match="0 of targets's keys"):
        repo.publish(DIGITS, 2)


@pytest.mark.parametrize("role", ["targets", "snapshot", "timestamp"])
def test_a_lost_key_is_replaced_without_it(repo: Repo, tmp_path: Path, role: str) -> None:
    assert seen(repo, tmp_path / "old")
    for path in (repo.keys / "online").glob(f"{role}-*.pem"):
        path.unlink()
    with pytest.raises(Int8dError, match=f"repo rotate {role}"):
        repo.publish(DIGITS, 2)
    repo.rotate(role)
    repo.publish(DIGITS, 2)
    assert seen(repo, tmp_path / "old", "digits/2.int8.safetensors")
    assert seen(repo, tmp_path / "new", "digits/2.int8.safetensors")


def test_a_lost_root_key_is_replaced_by_the_others(repo: Repo, tmp_path: Path) -> None:
    lost = document(repo, "1.root.json").signed.roles["root"].keyids[0]
    (repo.keys / "root" / f"root-{lost[:16]}.pem").unlink()
    with opened(repo.folder, Keys(repo.keys)) as repository:
        come, gone = rotate(repository, "root", [lost[:8]])
    assert gone == [lost]
    role = document(repo, "2.root.json").signed.roles["root"]
    assert (len(role.keyids), role.threshold) == (3, 2)
    assert come[0] in role.keyids
    assert seen(repo, tmp_path / "box")


def test_too_few_root_keys_replace_nothing(repo: Repo) -> None:
    for path in sorted((repo.keys / "root").iterdir())[:2]:
        path.unlink()
    with pytest.raises(Int8dError, match=r"1 of root's keys are in .*, and it takes 2"):
        repo.rotate("targets")
    assert not (repo.folder / "metadata" / "2.root.json").exists()
    repo.refresh()


def test_a_client_refuses_a_root_with_one_signature_short(repo: Repo, tmp_path: Path) -> None:
    repo.rotate("targets")
    root = document(repo, "2.root.json")
    root.signatures = dict(list(root.signatures.items())[:1])
    root.to_file(str(repo.folder / "metadata" / "2.root.json"))
    with pytest.raises(UnsignedMetadataError):
        seen(repo, tmp_path / "box")
    with pytest.raises(Int8dError, match="not signed by the keys of 'root'"):
        repo.refresh()


def test_publishing_and_refreshing_take_no_root_key(repo: Repo, tmp_path: Path) -> None:
    shutil.rmtree(repo.keys / "root")
    repo.publish(DIGITS, 2)
    repo.refresh()
    assert seen(repo, tmp_path / "box", "digits/2.int8.safetensors")


def test_an_expired_repository_is_refused_until_it_is_refreshed(repo: Repo, tmp_path: Path) -> None:
    assert seen(repo, tmp_path / "box")
    repo.expires = Expiry(timestamp=-1)
    repo.refresh()
    with pytest.raises(ExpiredMetadataError):
        seen(repo, tmp_path / "box")
    repo.expires = Expiry()
    assert repo.refresh() == ["timestamp"]
    assert seen(repo, tmp_path / "box")


@pytest.mark.parametrize(
    ("expires", "signed"),
    [
        (Expiry(snapshot=6), ["snapshot", "timestamp"]),
        (Expiry(targets=80), ["targets", "snapshot", "timestamp"]),
        (Expiry(root=100), ["timestamp", "root"]),
    ],
)
def test_refresh_renews_what_has_used_up_half_of_its_days(repo: Repo, tmp_path: Path, expires, signed) -> None:
    repo.expires = expires
    repo.publish(DIGITS, 2)
    if expires.root < Expiry().root:
        repo.rotate("root")  # which is signed for as long
    assert seen(repo, tmp_path / "box")
    repo.expires = Expiry()
    assert repo.refresh() == signed
    assert repo.refresh() == ["timestamp"]
    assert seen(repo, tmp_path / "box")


def test_a_root_that_is_about_to_expire_stays_where_its_keys_are_away(tmp_path: Path) -> None:
    repo = make(tmp_path, Expiry(root=10))
    (repo.keys / "root").rename(tmp_path / "safe")
    repo.expires = Expiry()
    assert repo.refresh() == ["timestamp"]
    (tmp_path / "safe").rename(repo.keys / "root")
    assert repo.refresh() == ["timestamp", "root"]


def forged(repo: Repo, name: str, edit) -> None:
    """A metadata file changed by somebody with a key of their own."""
    metadata = document(repo, name)
    edit(metadata.signed)
    metadata.sign(CryptoSigner.generate_ed25519())
    metadata.to_file(str(repo.folder / "metadata" / name))


@pytest.mark.parametrize("name", ["timestamp.json", "2.snapshot.json", "2.targets.json"])
def test_what_somebody_else_changed_is_not_signed_again(repo: Repo, tmp_path: Path, name: str) -> None:
    forged(repo, name, lambda signed: None)
    with pytest.raises(Int8dError, match=f"{name} is not .*somebody changed it"):
        repo.publish(DIGITS, 2)
    with pytest.raises(RepositoryError):
        seen(repo, tmp_path / "box")


def test_a_repository_of_other_keys_is_refused(repo: Repo, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = make(tmp_path / "other")
    with pytest.raises(Int8dError, match="made with other keys"), opened(repo.folder, Keys(other.keys)):
        pass


@pytest.mark.parametrize("name", ["timestamp.json", "2.snapshot.json", "2.targets.json"])
def test_a_repository_that_lost_a_file_is_not_begun_anew(repo: Repo, name: str) -> None:
    (repo.folder / "metadata" / name).unlink()
    with pytest.raises(Int8dError, match=r"bring (it|the repository) back from a copy"):
        repo.publish(DIGITS, 2)


def test_a_damaged_file_is_named(repo: Repo) -> None:
    (repo.folder / "metadata" / "timestamp.json").write_bytes(b"{")
    with pytest.raises(Int8dError, match=r"timestamp\.json is damaged"):
        repo.refresh()


def _publish(repo: Repo, name: str) -> None:
    for number in range(1, 6):
        repo.publish(DIGITS, number, name)


def test_publishers_at_the_same_time_lose_nothing(repo: Repo, tmp_path: Path) -> None:
    names = ("a", "b", "c")
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_publish, args=(repo, name)) for name in names]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    with opened(repo.folder, Keys(repo.keys)) as repository:
        found = [(e.release.model, e.release.release) for e in repository.releases()]
    assert found == [*((name, n) for name in names for n in range(1, 6)), ("digits", 1)]
    assert seen(repo, tmp_path / "box", "c/5.int8.safetensors")


def test_private_keys_are_for_their_owner_and_named_after_their_ids(repo: Repo) -> None:
    named = json.loads((repo.folder / "metadata" / "1.root.json").read_text())["signed"]["roles"]
    found = sorted(path.name for path in repo.keys.rglob("*.pem"))
    assert found == sorted(f"{role}-{keyid[:16]}.pem" for role in named for keyid in named[role]["keyids"])
    assert {path.stat().st_mode & 0o777 for path in repo.keys.rglob("*.pem")} == {0o600}
    assert {(repo.keys / folder).stat().st_mode & 0o777 for folder in ("root", "online")} == {0o700}


def test_pruned_releases_go_with_their_files_and_clients_follow(repo: Repo, tmp_path: Path) -> None:
    box = tmp_path / "box"
    seen(repo, box)
    for release in (2, 3):
        repo.publish(variant(tmp_path, release), release)
    repo.publish(variant(tmp_path, 4), 1, "other")
    before = repo.target(1)
    with opened(repo.folder, Keys(repo.keys)) as repository:
        gone = prune(repository, 2)
    assert [(e.release.model, e.release.release) for e in gone] == [("digits", 1)]
    assert not before.exists()
    assert seen(repo, box) is None
    for path in ("digits/2.int8.safetensors", "digits/3.int8.safetensors", "other/1.int8.safetensors"):
        client = repo.client(box)
        target = client.get_targetinfo(path)
        assert target is not None
        client.download_target(target)
    with opened(repo.folder, Keys(repo.keys)) as repository, pytest.raises(Int8dError, match="newest release"):
        prune(repository, 0)
