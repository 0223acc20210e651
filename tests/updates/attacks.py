"""The table of attacks: what somebody between the publisher and a device may try, and how the device refuses it.

    python -m tests.updates tables          # the table, into docs/updates.md

Each is played in a world of its own: a publisher with keys, a web server that can be hostile, and a device that has
committed release 2. Afterwards release 3 is published, and must come.
"""

from __future__ import annotations

import hashlib
import shutil
import ssl
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from unittest.mock import patch

import msgspec
from securesystemslib.signer import CryptoSigner

from agent.config.tables import Updates
from agent.repository import fetch, find
from agent.repository.connect import open_transport
from agent.repository.reasons import Refused
from tests import pki
from tests.updates import web as hostile
from tests.updates.simulator import Simulator
from tests.updates.tables import table
from tests.updates.web import Web

DEVICE = "box1"
OLD, GOOD, NEW = b"release 1" * 9000, b"release 2" * 9000, b"release 3" * 9000


class World:
    """A publisher, its web server, and a device that has committed release 2 of it. Release 3 is published next.

    before: the repository's folder when release 1 was the newest. clock: the device's.
    """

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder, self.stack = folder, stack
        self.sim = Simulator(folder / "publisher")
        self.sim.add(1, OLD)
        self.sim.publish()
        self.before = self.sim.copy(folder / "before")
        self.sim.add(2, GOOD)
        self.sim.publish()
        self.web = self.serve(self.sim.folder)
        self.settings = Updates(repository=self.web.url, root=str(self.sim.root_file), min_free_bytes=0)
        self.impatient = False  # while it fetches
        self.wanted: int | None = None
        self.clock: Callable[[], float] = time.time
        self.state = folder / "device"
        (self.state / "staging").mkdir(parents=True)
        self.find()

    def serve(self, folder: Path, context: ssl.SSLContext | None = None) -> Web:
        web = Web(folder, context)
        self.stack.callback(web.close)
        return web

    def fork(self) -> Simulator:
        """An attacker with all keys, whose repository is served from now on."""
        evil = self.sim.fork(self.folder / "attacker")
        self.web.folder = evil.folder
        return evil

    def set(self, **settings: object) -> None:
        self.settings = msgspec.structs.replace(self.settings, **settings)

    def publish(self) -> None:
        self.sim.add(3, NEW)
        self.sim.publish()

    def find(self) -> find.Found:
        ask = find.Ask(folder=str(self.state), device=DEVICE, model="digits", settings=self.settings, committed=2,
                       committed_sha256=hashlib.sha256(GOOD).hexdigest(), wanted=self.wanted)  # fmt: skip
        transport = open_transport(self.settings, DEVICE, ask.broker)
        try:
            return find.find(ask, transport, self.clock)
        finally:
            transport.close()

    def update(self) -> str:
        """What a device does: "accepted" with release 3 verified on its disk, or "nothing"."""
        found = self.find()
        if found.target is None:
            return "nothing"
        if self.impatient:
            self.set(min_bytes_per_s=1000, stall_s=1.0)
        part = self.state / "staging" / f"{found.target.sha256}.part"
        fetch.perform(fetch.Ask(target=found.target, part=str(part), device=DEVICE, settings=self.settings), _silent)
        assert part.read_bytes() == NEW
        return "accepted"


def _silent(done: int) -> None:
    pass


@dataclass(frozen=True)
class Attack:
    """does: what the attacker does, in words. code: of ``agent.repository.reasons``, or "accepted", or "nothing": no
    release is due. lasting: what the attack leaves behind is no longer there for an honest publisher to build on.
    """

    name: str
    does: str
    code: str
    play: Callable[[World], None]
    lasting: bool = False


@dataclass(frozen=True)
class Outcome:
    """code: of the refusal, or what ``World.update`` says. message: the refusal's. afterwards: the same, once the
    attack is over and release 3 is published.
    """

    code: str
    message: str
    afterwards: str


def play(attack: Attack, folder: Path) -> Outcome:
    """A world of its own in ``folder``; there is nothing in it before."""
    with ExitStack() as stack, patch.object(fetch, "BACK_OFF_S", 0.01):
        world = World(folder, stack)
        settings = world.settings
        attack.play(world)
        code, message = _tried(world)
        world.web.hostile.clear()
        world.web.folder = world.sim.folder
        world.settings, world.wanted, world.clock, world.impatient = settings, None, time.time, False
        if not attack.lasting:
            world.sim.expires = dict.fromkeys(world.sim.expires, _in_days(30))
            world.publish()
            world.sim.publish()  # versions that no attacker has signed
        return Outcome(code, message, "" if attack.lasting else _tried(world)[0])


def _tried(world: World) -> tuple[str, str]:
    try:
        return world.update(), ""
    except Refused as e:
        return e.code, str(e)


def _in_days(days: float) -> datetime:
    return datetime.now(UTC).replace(microsecond=0) + timedelta(days)


# What attackers do. Those who hold keys sign as ``world.fork()``.


def _old_state(w: World) -> None:
    w.web.folder = w.before


def _old_snapshot(w: World) -> None:
    evil = w.fork()
    evil.snapshot.signed.version = 0
    evil.publish("snapshot", "timestamp")


def _old_targets(w: World) -> None:
    evil = w.fork()
    evil.targets.signed.version = 0
    evil.publish()


def _wants_release_1(w: World) -> None:
    w.wanted = 1


def _only_release_1(w: World) -> None:
    evil = w.fork()
    del evil.targets.signed.targets["digits/2.int8.safetensors"]
    evil.publish()


def _expired(role: str, w: World) -> None:
    w.sim.expires[role] = _in_days(-1)
    if role == "root":
        w.sim.rotate("root")
    else:
        w.publish()


def _mixed(role: str, w: World) -> None:
    """A role's newest file is one of another state."""
    w.publish()
    other = w.sim.fork(w.folder / "attacker")
    other.add(3, OLD)
    other.publish()
    w.web.hostile[f"/{w.sim.path(role).name}"] = lambda handler, _: _instead(handler, other.path(role).read_bytes())


def _instead(handler: hostile.Handler, data: bytes) -> None:
    handler.head(200, len(data))
    handler.body(data, 0)


def _stranger(role: str, w: World) -> None:
    """All that a role says is signed by keys that nobody named."""
    evil = w.fork()
    evil.signers[role] = [CryptoSigner.generate_ed25519() for _ in evil.signers[role]]
    _says_more(evil, role)


def _says_more(evil: Simulator, role: str) -> None:
    """Publishes what the role has to sign."""
    if role == "root":
        evil.root.signed.version += 1
        evil.write_root()
    else:
        evil.add(3, NEW)
        evil.publish()


def _one_short(role: str, w: World) -> None:
    evil = w.fork()
    evil.signers[role] = evil.signers[role][:1]
    _says_more(evil, role)


def _answers(end: str, how: hostile.Hostile, w: World, **settings: object) -> None:
    w.publish()
    w.web.hostile[end] = how
    w.set(**settings)


def _drips_target(w: World) -> None:
    _answers("3.int8.safetensors", hostile.drip, w)
    w.impatient = True


def _damage(w: World, how: Callable[[Path], None], *names: str) -> None:
    """After a power cut: the device's files of python-tuf, and an old state of the repository."""
    w.web.folder = w.before
    for name in names:
        how(w.state / "tuf" / name)


def _truncate(file: Path) -> None:
    file.write_bytes(b"")


def _garbage(file: Path) -> None:
    file.write_bytes(b"\x00" * file.stat().st_size)


def _remove(path: Path) -> None:
    shutil.rmtree(path)


def _root_held_back(w: World, lost: bool) -> None:
    """The device knows 2.root.json, where the timestamp's key was replaced."""
    w.sim.rotate("timestamp")
    w.sim.publish("timestamp")
    w.find()
    if lost:
        _damage(w, _truncate, "root_history/2.root.json", "timestamp.json", "snapshot.json")
    w.web.folder = w.before


def _rotates(w: World) -> None:
    w.sim.rotate("root", "timestamp", "snapshot", "targets")
    w.sim.rotate("root")
    w.publish()


def _recovers(w: World) -> None:
    """Stolen keys signed the highest versions there are, and the device has seen them."""
    evil = w.fork()
    for role in ("timestamp", "snapshot", "targets"):
        getattr(evil, role).signed.version = 2_000_000_000
    evil.issued = time.time() + 1e9
    evil.publish()
    w.set(without_clock="floor")
    evil.expires = dict.fromkeys(evil.expires, _in_days(20_000))
    evil.rotate("root")
    shutil.copy(evil.folder / "metadata" / "2.root.json", w.sim.folder / "metadata")
    evil.publish()
    w.find()
    w.sim.root, w.sim.signers["root"] = evil.root, evil.signers["root"]
    w.web.folder = w.sim.folder
    w.set(without_clock="refuse")
    w.sim.rotate("timestamp", "snapshot", "targets")
    w.publish()


def _clock(w: World, without_clock: str) -> None:
    w.publish()
    w.set(without_clock=without_clock)
    w.clock = lambda: 0.0


def _expired_by_floor(w: World) -> None:
    """The device was last online when the repository had signed a later time than this metadata's expiry."""
    w.sim.issued = time.time() + 40 * 86400
    _clock(w, "floor")


def _other_authority(w: World) -> None:
    folder = w.folder / "pki"
    folder.mkdir()
    pki.make(folder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "broker.pem", folder / "broker.key")
    web = w.serve(w.sim.folder, context)
    w.set(repository=web.url, ca=str(folder / "other" / "ca.pem"))


_TARGET = "3.int8.safetensors"
_LATER = "after a power cut the device's {} and the server gives an older state"
ATTACKS = [
    Attack("rollback of the timestamp", "serves the whole repository as it was", "metadata_rollback", _old_state),
    Attack("rollback of the snapshot", "signs a timestamp that names an older snapshot", "metadata_rollback",
           _old_snapshot),
    Attack("rollback of the targets", "signs a snapshot that names older targets", "metadata_rollback", _old_targets),
    Attack("rollback of the release, asked for", "has somebody ask for release 1 after 2", "release_rollback",
           _wants_release_1),
    Attack("rollback of the release", "publishes that release 1 is the newest", "nothing", _only_release_1),
    *(Attack(f"freeze: {role}", f"keeps serving {role} metadata that has expired", "expired", partial(_expired, role))
      for role in ("timestamp", "snapshot", "targets")),
    Attack("freeze: root", "keeps serving a root that has expired", "expired", partial(_expired, "root"), lasting=True),
    Attack("mix and match: snapshot", "serves the snapshot of another state", "mix_and_match",
           partial(_mixed, "snapshot")),
    Attack("mix and match: targets", "serves the targets metadata of another state", "mix_and_match",
           partial(_mixed, "targets")),
    *(Attack(f"wrong key: {role}", f"signs {role} metadata with keys of its own", "wrong_signature",
             partial(_stranger, role)) for role in ("root", "timestamp", "snapshot", "targets")),
    *(Attack(f"one signature short: {role}", f"has one of the two keys that must sign {role} metadata",
             "too_few_signatures", partial(_one_short, role)) for role in ("root", "targets")),
    Attack("endless metadata", "serves a timestamp that never ends", "endless_data",
           partial(_answers, "timestamp.json", hostile.endless)),
    Attack("endless root", "serves a next root that never ends", "endless_data",
           partial(_answers, "2.root.json", hostile.endless)),
    Attack("endless target", "serves a model that never ends", "endless_data",
           partial(_answers, _TARGET, hostile.endless)),
    Attack("slow drip of metadata", "serves fifty bytes a second", "too_slow",
           partial(_answers, "timestamp.json", hostile.drip, min_bytes_per_s=1000, stall_s=1.0)),
    Attack("slow drip of a target", "serves fifty bytes a second of the model", "too_slow", _drips_target),
    Attack("slow drip of a header", "serves a header that never ends", "too_slow",
           partial(_answers, "timestamp.json", hostile.drip_header, stall_s=0.5, request_timeout_s=0.5)),
    Attack("slow drip of a length", "serves a chunk's length that never ends", "too_slow",
           partial(_answers, "timestamp.json", hostile.drip_chunk, stall_s=1.0)),
    Attack("metadata that stops", "serves half of it and keeps the connection open", "too_slow",
           partial(_answers, "timestamp.json", hostile.stalls, min_bytes_per_s=1000, stall_s=1.0)),
    Attack("truncated metadata", "serves half of what it announces", "truncated",
           partial(_answers, "timestamp.json", hostile.cut)),
    Attack("truncated metadata, unannounced", "serves half of it without its length", "truncated",
           partial(_answers, "timestamp.json", hostile.cut_unannounced)),
    Attack("truncated target", "serves half of the model, each time from its start", "truncated",
           partial(_answers, _TARGET, hostile.cut)),
    Attack("local metadata truncated", _LATER.format("timestamp and snapshot are empty,"), "metadata_rollback",
           lambda w: _damage(w, _truncate, "timestamp.json", "snapshot.json")),
    Attack("local metadata garbage", _LATER.format("files hold zeros,"), "metadata_rollback",
           lambda w: _damage(w, _garbage, "timestamp.json", "snapshot.json", "targets.json")),
    Attack("local metadata lost", _LATER.format("tuf/ is gone,"), "metadata_rollback",
           lambda w: _damage(w, _remove, "")),
    Attack("captive portal", "answers each request with a page, status 200", "not_a_repository",
           partial(_answers, "", hostile.portal)),
    Attack("captive portal in disguise", "calls its page a file", "not_a_repository",
           partial(_answers, "", hostile.disguised_portal)),
    Attack("captive portal, redirecting", "leads each request to its own page", "not_a_repository",
           partial(_answers, "", hostile.redirect)),
    Attack("wrong TLS authority", "has a certificate of another authority", "unreachable", _other_authority),
    Attack("target with other bytes", "serves another file of the same length", "damaged",
           partial(_answers, _TARGET, hostile.other_bytes)),
    Attack("clock at 1970", "has the device start without its clock", "clock", partial(_clock, without_clock="refuse")),
    Attack("clock at 1970, floor", "the same, with without_clock = \"floor\"", "accepted",
           partial(_clock, without_clock="floor"), lasting=True),
    Attack("clock at 1970, freeze", "serves what had expired by the time that was signed", "expired", _expired_by_floor,
           lasting=True),
    Attack("root rollback", "keeps the newer root back from a device that knows it", "metadata_rollback",
           partial(_root_held_back, lost=True)),
    Attack("root held back", "the same, and the device's files are whole", "wrong_signature",
           partial(_root_held_back, lost=False)),
    Attack("all keys rotated", "nothing: the publisher replaces every key, properly", "accepted", _rotates,
           lasting=True),
    Attack("recovery from stolen keys", "has signed version 2,000,000,000 of all; the publisher takes the keys back",
           "accepted", _recovers, lasting=True),
]  # fmt: skip


def report(folder: Path) -> tuple[str, bool]:
    """The table, in Markdown, and whether each attack is refused with its own reason. Takes half a minute."""
    rows, holds = [], True
    for i, attack in enumerate(ATTACKS):
        outcome = play(attack, folder / str(i))
        held = outcome.code == attack.code and (attack.lasting or outcome.afterwards == "accepted")
        holds &= held
        answer = outcome.code if outcome.code in ("accepted", "nothing") else f"`{outcome.code}`"
        rows.append((attack.name, attack.does, answer, "yes" if held else "**no**"))
    return table(("attack", "what the attacker does", "the device's answer", "holds"), rows), holds
