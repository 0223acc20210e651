"""``int8d-make keys``, ``publish``, ``repo`` and ``rollout``: what they do, and what they say to mistakes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pyrage
import pytest

from agent.errors import Int8dError
from agent.modelfile import Model, read, write
from agent.repository.release import Release, Stage, custom_of, release_of
from models.cli import main
from models.repository.rollout import stages
from tests.agent_process import DIGITS, ROOT
from tests.repository import Repo

NOW = 1_000_000_000


class Workbench:
    """Runs commands on a repository and its keys."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self.keys, self.repo = folder / "keys", folder / "repository"

    def run(self, *words: object) -> str:
        """What it printed."""
        status, out, error = self._main(words)
        assert (status, error) == (0, "")
        return out

    def refused(self, *words: object) -> str:
        """What it said on stderr: one line."""
        status, out, error = self._main(words)
        assert (status, out) == (2, "")
        assert error.startswith("int8d-make: ")
        assert error.count("\n") == 1
        return error

    def _main(self, words: tuple[object, ...]) -> tuple[int, str, str]:
        where = () if words[0] == "keys" else ("--repo", self.repo, "--keys", self.keys)
        status = main([str(word) for word in (*words, *where)])
        return (status, *self._capsys.readouterr())

    def release(self, folder: Path, path: str) -> Release:
        """As a client sees it."""
        target = Repo(self.repo, self.keys, self.keys / "root.json").client(folder).get_targetinfo(path)
        assert target is not None
        release = release_of(target.custom)
        assert release is not None
        return release


def digits(number: int, *rest: object, model: object = DIGITS) -> tuple[object, ...]:
    return ("publish", model, "--name", "digits", "--release", number, *rest)


@pytest.fixture
def bench(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Workbench:
    bench = Workbench(tmp_path, capsys)
    bench.run("keys", "init", bench.keys)
    return bench


def test_from_keys_to_a_withdrawn_release(bench: Workbench, tmp_path: Path) -> None:
    said = bench.run(*digits(1, "--rollout", "5%,25%@24h,100%@72h"))
    assert "published digits release 1 (32,896 bytes) for all devices: 5%, 25% from" in said
    first = bench.release(tmp_path / "box", "digits/1.int8.safetensors")
    assert [s.percent for s in first.rollout.stages] == [5, 25, 100]
    assert first.rollout.stages[2].at - first.rollout.stages[1].at == 48 * 3600
    assert first.rollout.salt == "digits/1"
    (bench.keys / "root").rename(tmp_path / "safe")
    bench.run(*digits(2, "--device-group", "north", "--abort-threshold", 0.25))
    north = bench.release(tmp_path / "box", "digits/north/2.int8.safetensors")
    assert (north.device_group, north.rollout.abort_threshold) == ("north", 0.25)
    assert "signed timestamp" in bench.run("repo", "refresh")
    assert "aborted" in bench.run("rollout", "abort", "digits", 1)
    assert "50%" in bench.run("rollout", "set", "digits", 1, "--stages", "50", "--abort-threshold", 0.5)
    changed = bench.release(tmp_path / "box", "digits/1.int8.safetensors")
    assert (changed.rollout.stages, changed.rollout.abort_threshold) == ((Stage(50.0),), 0.5)
    bench.run("repo", "revoke", "digits", 2, "--reason", "wrong labels")
    (tmp_path / "safe").rename(bench.keys / "root")
    assert "root version 2" in bench.run("repo", "rotate", "root", "--all")
    for folder in ("root", "online"):
        (bench.keys / folder).rename(tmp_path / folder)
    shown = [line.split() for line in bench.run("repo", "show").splitlines()]
    assert [row[:2] for row in shown[1:5]] == [["root", "2"], ["targets", "5"], ["snapshot", "5"], ["timestamp", "6"]]
    assert shown[7] == ["digits", "1", "all", "32,896", "plain", "50%"]
    assert shown[8] == ["digits", "2", "north", "32,896", "plain", "withdrawn:", "wrong", "labels"]
    assert bench.release(tmp_path / "box", "digits/north/2.int8.safetensors").withdrawn == "wrong labels"


def test_publishing_does_not_import_torch(bench: Workbench) -> None:
    words = [*map(str, digits(1)), "--repo", str(bench.repo), "--keys", str(bench.keys)]
    script = f"import sys; from models.cli import main; status = main({words!r}); print(status, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "0 False", done.stderr


def test_each_recipient_decrypts_the_release_and_nobody_else(bench: Workbench, tmp_path: Path) -> None:
    one, two, three, stranger = (pyrage.x25519.Identity.generate() for _ in range(4))
    listed = tmp_path / "boxes"
    listed.write_text(f"# the north\n{two.to_public()}\n\n{three.to_public()}  # box3\n")
    said = bench.run(*digits(1, "--encrypt-to", one.to_public(), f"@{listed}"))
    assert "encrypted to 3" in said
    release = bench.release(tmp_path / "box", "digits/1.int8.safetensors.age")
    (file,) = (bench.repo / "targets" / "digits").iterdir()
    assert re.fullmatch(r"[0-9a-f]{64}\.1\.int8\.safetensors\.age", file.name)
    plain = DIGITS.read_bytes()
    for identity in (one, two, three):
        assert pyrage.decrypt(file.read_bytes(), [identity]) == plain
    with pytest.raises(pyrage.DecryptError):
        pyrage.decrypt(file.read_bytes(), [stranger])
    assert (release.encryption, release.plaintext_bytes) == ("age", len(plain))
    assert f".{release.plaintext_sha256}." not in file.name


def test_a_locked_root_key_takes_its_passphrase(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench = Workbench(tmp_path, capsys)
    (tmp_path / "phrase").write_text("correct horse\n")
    (tmp_path / "wrong").write_text("battery\n")
    bench.run("keys", "init", bench.keys, "--passphrase-file", tmp_path / "phrase")
    bench.run(*digits(1))
    assert "give --passphrase-file" in bench.refused("repo", "rotate", "targets")
    assert "the passphrase is another one" in bench.refused(
        "repo", "rotate", "targets", "--passphrase-file", tmp_path / "wrong"
    )
    bench.run("repo", "rotate", "root", "--all", "--passphrase-file", tmp_path / "phrase")
    assert all(b"ENCRYPTED" in path.read_bytes() for path in (bench.keys / "root").glob("*.pem"))
    bench.run("repo", "refresh")


def test_keys_are_never_overwritten(bench: Workbench) -> None:
    before = {path: path.read_bytes() for path in bench.keys.rglob("*.pem")}
    assert "never overwritten" in bench.refused("keys", "init", bench.keys)
    assert {path: path.read_bytes() for path in bench.keys.rglob("*.pem")} == before


@pytest.mark.parametrize(("keys", "threshold"), [(3, 0), (3, 4), (0, 0)])
def test_a_threshold_that_no_set_of_keys_can_meet_is_refused(bench: Workbench, keys: int, threshold: int) -> None:
    refused = bench.refused("keys", "init", bench.keys / "new", "--root-keys", keys, "--root-threshold", threshold)
    assert f"a threshold of {threshold} of {keys}" in refused


def test_releases_only_grow_for_each_device(bench: Workbench) -> None:
    bench.run(*digits(3))
    assert "take 4 or more" in bench.refused(*digits(3))
    bench.run(*digits(4, "--device-group", "north"))
    assert "take 4 or more" in bench.refused(*digits(3, "--device-group", "south"))
    bench.run(*digits(4, "--device-group", "south"))
    bench.run(*digits(7, "--device-group", "south"))
    assert "take 5 or more" in bench.refused(*digits(4, "--device-group", "north"))
    assert "take 8 or more" in bench.refused(*digits(5))
    bench.run("publish", DIGITS, "--name", "others", "--release", 1)
    assert "for each of north, south: say --device-group" in bench.refused("rollout", "abort", "digits", 4)
    assert "aborted" in bench.run("rollout", "abort", "digits", 4, "--device-group", "north")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--name", "a/b"), "'a/b' can't be a name"),
        (("--name", ".."), "'..' can't be a name"),
        (("--name", "x" * 65), "1 to 64"),
        (("--device-group", "no rth"), "can't be a group of devices"),
        (("--release", 0), "numbered from 1 on"),
        (("--release", 2**53), "numbered from 1 on"),
        (("--rollout", "half"), "'half' is no stage"),
        (("--rollout", "5%,120%@1h"), "120% is not within 0..100%"),
        (("--rollout", "5%,10%"), "takes a later time"),
        (("--rollout", "50%,10%@1h"), "10% after 50%"),
        (("--rollout", "50%@2026-13-01"), "is not a date"),
        (("--abort-threshold", 10), "it is a share of the devices, 0..1"),
        (("--encrypt-to", "age1nonsense"), "'age1nonsense' is no recipient"),
        (("--encrypt-to", "AGE-SECRET-KEY-1QQQ"), "not the secret one"),
        (("--encrypt-to", "@/nowhere"), "/nowhere"),
        (("--encrypt-to", "@/dev/null"), "there is no recipient in it"),
        (("--expires-timestamp", 0), "--expires-timestamp 0"),
    ],
)
def test_wrong_arguments_are_refused_and_change_nothing(bench: Workbench, words, expected: str) -> None:
    bench.run(*digits(1))
    before = {path: path.read_bytes() for path in bench.repo.rglob("*") if path.is_file()}
    assert expected in bench.refused(*digits(2), *words)
    assert {path: path.read_bytes() for path in bench.repo.rglob("*") if path.is_file()} == before


def test_a_secret_key_given_as_recipient_is_not_printed(bench: Workbench) -> None:
    secret = str(pyrage.x25519.Identity.generate())
    assert secret not in bench.refused(*digits(1, "--encrypt-to", secret))


def test_a_file_that_is_no_model_is_refused(bench: Workbench) -> None:
    assert "safetensors" in bench.refused(*digits(1, model=ROOT / "pyproject.toml"))
    assert "no such file" in bench.refused(*digits(1, model="nowhere"))


def test_a_model_without_golden_inputs_is_refused(bench: Workbench, tmp_path: Path) -> None:
    model = read(DIGITS)
    write(tmp_path / "bare.safetensors", Model(model.header, model.constants))
    assert "no golden inputs" in bench.refused(*digits(1, model=tmp_path / "bare.safetensors"))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("repo", "show"), "'int8d-make publish' makes"),
        (("repo", "refresh"), "'int8d-make publish' makes"),
        (("repo", "rotate", "targets"), "'int8d-make publish' makes"),
        (("rollout", "abort", "digits", 1), "'int8d-make publish' makes"),
    ],
)
def test_without_a_repository_it_says_what_makes_one(bench: Workbench, words, expected: str) -> None:
    assert expected in bench.refused(*words)
    assert not bench.repo.exists()


def test_without_keys_it_says_what_makes_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "'int8d-make keys init" in Workbench(tmp_path, capsys).refused(*digits(1))


def test_without_what_signs_it_says_what_to_install(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tuf", None)
    assert "pip install 'int8d[updates]'" in bench.refused(*digits(1))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("repo", "revoke", "digits", 1, "--reason", " "), "takes a reason"),
        (("repo", "revoke", "digits", 2, "--reason", "x"), "no release 2 of 'digits'; there are: 1"),
        (("repo", "revoke", "digits", 1, "--reason", "x", "--device-group", "north"), "for group 'north'"),
        (("repo", "rotate", "root"), "--key-id"),
        (("repo", "rotate", "root", "--key-id", "zz"), "not the beginning of one key's id"),
        (("rollout", "set", "others", 1, "--stages", "5"), "no release 1 of 'others'; there are: none"),
    ],
)
def test_what_is_not_there_is_named(bench: Workbench, words, expected: str) -> None:
    bench.run(*digits(1))
    assert expected in bench.refused(*words)


def test_a_missing_signing_key_is_named_with_its_cure(bench: Workbench) -> None:
    bench.run(*digits(1))
    (key,) = (bench.keys / "online").glob("snapshot-*.pem")
    key.rename(key.with_suffix(".away"))
    before = sorted(bench.repo.rglob("*"))
    said = bench.refused(*digits(2))
    assert key.name in said
    assert "repo rotate snapshot" in said
    assert sorted(bench.repo.rglob("*")) == before


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("10", (Stage(10.0),)),
        ("0.5%", (Stage(0.5),)),
        ("5%@2h", (Stage(5.0, NOW + 7200),)),
        ("0, 5%@90m, 100@1.5d", (Stage(0.0), Stage(5.0, NOW + 5400), Stage(100.0, NOW + 129600))),
        ("1%,100%@2026-12-01T08:00", (Stage(1.0), Stage(100.0, 1796112000))),
        ("1%,100%@2026-12-01T08:00+01:00", (Stage(1.0), Stage(100.0, 1796108400))),
    ],
)
def test_stages_are_read(spec: str, expected: tuple[Stage, ...]) -> None:
    assert stages(spec, NOW) == expected


def test_a_damaged_description_is_no_release() -> None:
    good = custom_of(Release("digits", 1))
    assert release_of(good) == Release("digits", 1)
    assert release_of(None) is None
    assert release_of({"other": {}}) is None
    with pytest.raises(Int8dError, match="of another version or damaged"):
        release_of({"int8d": good["int8d"] | {"release": "first"}})
