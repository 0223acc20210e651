"""Secrets in files: credentials of systemd, and files that others can read."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from agent.config import load
from agent.config.secrets import secret_file
from agent.errors import ConfigError
from agent.wire import keys
from tests.agent_process import DIGITS, ROOT, ROUTE, Agent, Peer, picture, truth
from tests.broker import MOSQUITTO, Mosquitto


@pytest.fixture
def credentials(tmp_path: Path, monkeypatch) -> Path:
    """What LoadCredential gives: files of mode 0400 in a folder that a variable names."""
    folder = tmp_path / "credentials"
    folder.mkdir()
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(folder))
    return folder


def _config(folder: Path, broker: str = "", rest: str = "") -> Path:
    path = folder / "int8d.toml"
    path.write_text(f'device = "box1"\n[broker]\n{broker}\n[[model]]\nname = "digits"\npath = "{DIGITS}"\n{rest}')
    return path


def test_every_secret_may_be_a_credential(tmp_path: Path, credentials: Path, pki: Path) -> None:
    (credentials / "password").write_text("secret")
    (credentials / "tls").write_bytes((pki / "box1.key").read_bytes())
    keys.create(str(credentials / "int8d-key"))
    tls = f'[broker.tls]\nca = "{pki}/ca.pem"\ncert = "{pki}/box1.pem"\nkey = "credential:tls"\n'
    rest = f'{ROUTE}encryption = "hpke"\n[encryption]\nkey = "credential:int8d-key"\n'
    password = 'username = "box1"\npassword_file = "credential:password"\n'
    web = f'cert = "{pki}/box1.pem"\ncert_key = "credential:tls"\nkey = "credential:int8d-key"\n'
    updates = f'[updates]\nrepository = "https://localhost/"\nroot = "{pki}/ca.pem"\n{web}'
    config = load(_config(tmp_path, password + tls, rest + updates))
    assert config.updates.cert_key == str(credentials / "tls")
    assert config.updates.key == str(credentials / "int8d-key")
    assert config.broker.password_file == str(credentials / "password")
    assert config.broker.tls is not None
    assert config.broker.tls.key == str(credentials / "tls")
    assert config.encryption.key == str(credentials / "int8d-key")


def test_a_password_from_a_credential_is_served(tmp_path: Path, credentials: Path, stack) -> None:
    folder = tmp_path / "broker"
    folder.mkdir()
    passwords = folder / "passwords"
    tool = str(Path(MOSQUITTO).with_name("mosquitto_passwd")).replace("sbin", "bin")
    subprocess.run([tool, "-b", "-c", str(passwords), "box1", "secret"], check=True)
    broker = Mosquitto(folder, f"password_file {passwords}", anonymous=False)
    stack.callback(broker.stop)
    (credentials / "mqtt-password").write_text("secret\n")
    agent = Agent(tmp_path, broker.port, broker='username = "box1"\npassword_file = "credential:mqtt-password"\n')
    stack.callback(agent.kill)
    client = Peer(broker.port, ["predictions/#"], username="box1", password="secret")
    stack.callback(client.close)
    client.send("cameras/1/frame", picture(0))
    assert client.reply()["classes"][0]["label"] == truth()[0]


def test_without_systemd_a_credential_is_named_with_what_to_do(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    path = _config(tmp_path, 'username = "box1"\npassword_file = "credential:password"\n')
    with pytest.raises(ConfigError, match=r"broker.password_file.*CREDENTIALS_DIRECTORY.*LoadCredential=password:FILE"):
        load(path)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("credential:missing", "no credential 'missing': add LoadCredential=missing:FILE"),
        ("credential:../password", "not the name of a credential"),
        ("credential:..", "not the name of a credential"),
        ("credential:", "not the name of a credential"),
        ("missing", "there is no file 'missing'"),
    ],
)
def test_what_is_not_there_is_named(tmp_path: Path, credentials: Path, name: str, expected: str) -> None:
    (tmp_path / "password").write_text("secret")
    with pytest.raises(ConfigError, match=expected):
        secret_file(name, "broker.password_file")


@pytest.mark.parametrize(("mode", "warned"), [(0o600, False), (0o400, False), (0o640, True), (0o604, True)])
def test_a_secret_that_others_can_read_is_warned_of(tmp_path: Path, caplog, mode: int, warned: bool) -> None:
    file = tmp_path / "password"
    file.write_text("secret")
    os.chmod(file, mode)
    assert secret_file(str(file), "broker.password_file") == str(file)
    assert ("chmod 600" in caplog.text) is warned


def test_a_password_in_the_configuration_itself_is_a_secret(tmp_path: Path, caplog) -> None:
    path = _config(tmp_path, 'username = "box1"\npassword = "secret"\n')
    for mode, warned in ((0o600, False), (0o644, True)):
        os.chmod(path, mode)
        load(path)
        assert (str(path) in caplog.text) is warned


def test_a_command_takes_credentials_and_names_files_that_cannot_be_used(
    tmp_path: Path, credentials: Path, pki
) -> None:
    send = ["send", "x.png", "--model", "digits", "--device", "box1"]
    for options, expected in (
        (["--password-file", "credential:none"], "add LoadCredential=none:FILE"),
        (["--ca", f"{pki}/ca.pem", "--cert", f"{pki}/box1.pem"], "--cert and --key"),
        (["--ca", f"{tmp_path}/none.pem"], "can't be read"),
    ):
        done = subprocess.run([sys.executable, "-m", "agent.cli", *send, *options], capture_output=True, text=True,
                              cwd=ROOT)  # fmt: skip
        assert (done.returncode, expected in done.stderr) == (78, True), done.stderr


def test_the_daemon_says_so_in_its_log(tmp_path: Path, broker: Mosquitto, stack) -> None:
    (tmp_path / "password").write_text("secret")
    os.chmod(tmp_path / "password", 0o644)
    settings = f'username = "box1"\npassword_file = "{tmp_path}/password"\n'
    agent = Agent(tmp_path, broker.port, broker=settings)
    stack.callback(agent.kill)
    assert "can be read by others than its owner" in agent.log()
