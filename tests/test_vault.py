"""Model files that are encrypted at rest: opened in memory alone, by the right key, and freed again."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pyrage
import pytest

from agent.engine import load
from agent.errors import ConfigError
from agent.modelfile import read
from agent.repository.reasons import Refused
from agent.repository.release import Release
from agent.updates import identity
from agent.updates.vault import open_model
from tests.agent_process import DIGITS, ROOT
from tests.test_cli import int8d

PLAIN = DIGITS.read_bytes()
RELEASE = Release("digits", 7, encryption="age", plaintext_sha256=hashlib.sha256(PLAIN).hexdigest(),
                  plaintext_bytes=len(PLAIN))  # fmt: skip


def encrypted(path: Path, *key_files: Path, plain: bytes = PLAIN) -> Path:
    """The file, for those keys, as the workbench publishes it."""
    to = [pyrage.x25519.Recipient.from_str(r) for key in key_files for r in identity.recipients(str(key))]
    path.write_bytes(pyrage.encrypt(plain, to))
    return path


@pytest.fixture
def key(tmp_path: Path) -> Path:
    identity.create(str(tmp_path / "box1.age"))
    return tmp_path / "box1.age"


def refused(path: Path, key: Path | None, release: Release = RELEASE) -> Refused:
    with pytest.raises(Refused) as e, open_model(path, release, str(key) if key else None):
        pass
    return e.value


def test_an_encrypted_model_gives_its_golden_outputs(tmp_path: Path, key: Path) -> None:
    with open_model(encrypted(tmp_path / "model", key), RELEASE, str(key)) as path:
        model = read(path)
    engine = load(model)
    for pair in model.golden:
        assert engine.run(pair.inputs)["logits"].tobytes() == pair.outputs["logits"].tobytes()


def test_a_plain_model_is_mapped_where_it_lies() -> None:
    with open_model(DIGITS, Release("digits", 7), None) as path:
        assert path == str(DIGITS)


def test_what_is_decrypted_is_sealed_memory(tmp_path: Path, key: Path) -> None:
    with open_model(encrypted(tmp_path / "model", key), RELEASE, str(key)) as path:
        assert os.readlink(path).startswith("/memfd:int8d-model")
        with open(path, "r+b", buffering=0) as file, pytest.raises(PermissionError):
            file.write(b"x")
    assert not os.path.exists(path)


def test_either_of_two_keys_opens_it(tmp_path: Path, key: Path) -> None:
    identity.create(str(tmp_path / "new.age"))
    (tmp_path / "both.age").write_bytes(key.read_bytes() + (tmp_path / "new.age").read_bytes())
    for old_or_new in (key, tmp_path / "new.age"):
        with open_model(encrypted(tmp_path / "model", old_or_new), RELEASE, str(tmp_path / "both.age")) as path:
            assert Path(path).read_bytes() == PLAIN


def test_without_a_key_it_says_how_to_get_one(tmp_path: Path, key: Path) -> None:
    e = refused(encrypted(tmp_path / "model", key), None)
    assert e.code == "no_key"
    assert "int8d key new FILE --age" in str(e)
    assert refused(tmp_path / "model", tmp_path / "missing.age").code == "no_key"


def test_for_another_key_it_says_whom_to_publish_for(tmp_path: Path, key: Path) -> None:
    identity.create(str(tmp_path / "other.age"))
    e = refused(encrypted(tmp_path / "model", tmp_path / "other.age"), key)
    assert e.code == "no_key"
    assert f"--encrypt-to {identity.recipients(str(key))[0]}" in str(e)


@pytest.mark.parametrize("change", [lambda d: d[:-5], lambda d: d[:20_000] + bytes([d[20_000] ^ 1]) + d[20_001:],
                                    lambda d: d[:100], lambda d: b"", lambda d: PLAIN])  # fmt: skip
def test_a_damaged_file_is_refused_as_such(tmp_path: Path, key: Path, change) -> None:
    file = encrypted(tmp_path / "model", key)
    file.write_bytes(change(file.read_bytes()))
    assert refused(file, key).code == "damaged"


def test_what_is_inside_must_be_what_the_release_says(tmp_path: Path, key: Path) -> None:
    for plain in (PLAIN + b"x", PLAIN[:-1], PLAIN[:-1] + b"x"):
        assert refused(encrypted(tmp_path / "model", key, plain=plain), key).code == "damaged"


def test_no_more_is_decrypted_than_the_release_says(tmp_path: Path, key: Path) -> None:
    file = encrypted(tmp_path / "model", key, plain=bytes(1 << 24))
    e = refused(file, key, msgspec.structs.replace(RELEASE, plaintext_bytes=1 << 16))
    assert e.code == "damaged"
    assert "65,536" in str(e)


WHO = """
import gc, sys, time
from agent.engine import load
from agent.modelfile import read
from agent.updates.vault import open_model
from tests.test_vault import RELEASE

def ours(part):
    with open(part) as file:
        return sum("int8d-model" in line for line in file)

with open_model(sys.argv[1], RELEASE, sys.argv[2]) as path:
    model = read(path)
engine = load(model)
engine.run(model.golden[0].inputs)
print(ours("/proc/self/maps"), flush=True)
sys.stdin.readline()
del model, engine
gc.collect()
print(ours("/proc/self/maps"), flush=True)
"""


def holding(folder: Path, text: bytes) -> list[Path]:
    """The files below a folder that hold a text."""
    files = (Path(root, name) for root, _, names in os.walk(folder) for name in names)
    return [f for f in files if f.is_file() and not f.is_symlink() and text in f.read_bytes()]


def test_the_plaintext_is_on_no_disk_and_is_freed_with_the_model(tmp_path: Path, key: Path) -> None:
    marker = PLAIN[-4096:]  # weights
    file = encrypted(tmp_path / "model", key)
    here = tmp_path / "here"
    here.mkdir()
    shared = ("/tmp", "/var/tmp", "/dev/shm")
    before = {folder: set(os.listdir(folder)) for folder in shared}
    environment = os.environ | {"TMPDIR": str(here), "PYTHONPATH": str(ROOT), "HOME": str(here)}
    process = subprocess.Popen([sys.executable, "-c", WHO, str(file), str(key)], cwd=here, env=environment, text=True,
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    maps = int(process.stdout.readline())
    found = holding(tmp_path, marker)
    # Among those of others on this box, which may come and go.
    for folder in shared:
        for name in set(os.listdir(folder)) - before[folder]:
            made = Path(folder, name)
            try:
                found += holding(made, marker) if made.is_dir() else [made] if marker in made.read_bytes() else []
            except OSError:
                pass
    links = [os.readlink(f"/proc/{process.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{process.pid}/fd")]
    left, _ = process.communicate("\n", timeout=20)
    assert process.returncode == 0
    assert found == []
    assert maps > 0
    assert any("memfd:int8d-model" in link for link in links)
    assert left.strip() == "0"


def test_the_search_would_find_it(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "copy").write_bytes(PLAIN)
    assert holding(tmp_path, PLAIN[-4096:]) == [tmp_path / "deep" / "copy"]


def test_a_new_identity_is_its_owners_alone_and_never_overwritten(tmp_path: Path) -> None:
    file = tmp_path / "box1.age"
    made = int8d("key", "new", file, "--age")
    assert made.returncode == 0, made.stderr
    assert made.stdout.startswith("age1")
    assert file.stat().st_mode & 0o777 == 0o600
    assert int8d("key", "show", file).stdout == made.stdout
    again = int8d("key", "new", file, "--age")
    assert (again.returncode, "is there already" in again.stderr) == (78, True)
    assert identity.recipients(str(file)) == [made.stdout.strip()]


BAD_IDENTITIES = {
    "empty": ("", "holds no identity"),
    "a comment": ("# AGE-SECRET-KEY-1\n", "holds no identity"),
    "damaged": ("AGE-SECRET-KEY-1NONSENSE", "line 1"),
    "a recipient": ("# a\n\nage1nonsense", "line 3"),
}


@pytest.mark.parametrize("case", BAD_IDENTITIES)
def test_a_bad_identity_file_is_named(tmp_path: Path, case: str) -> None:
    text, expected = BAD_IDENTITIES[case]
    (tmp_path / "key").write_text(text)
    with pytest.raises(ConfigError, match=expected):
        identity.load(str(tmp_path / "key"))


def test_without_pyrage_it_says_what_to_install(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pyrage", None)
    with pytest.raises(ConfigError, match=r"pip install 'int8d\[updates\]'"):
        identity.create(str(tmp_path / "key"))
    assert not (tmp_path / "key").exists()
