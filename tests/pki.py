"""Certificates made as docs/security.md says, and a broker set up as systemd/mosquitto.conf says."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from tests.agent_process import ROOT
from tests.broker import Mosquitto

NAMES = ("box2", "client1", "client2", "watcher", "operator1", "publisher")  # beside the recipe's box1 and camera1


def bash(script: str, folder: Path) -> None:
    subprocess.run(["bash", "-ec", script], cwd=folder, check=True, capture_output=True)


def recipe() -> str:
    """The document's recipe, as written."""
    found = re.search(r"```sh\n(umask 077\n.*?)```", (ROOT / "docs" / "security.md").read_text(), re.S)
    assert found is not None
    return found[1]


def make(folder: Path) -> Path:
    """The recipe's files and NAMES; ``other/`` by an authority of the same name; ``late`` and ``latebox``, which
    expired; ``elsewhere`` for another host.
    """
    (folder / "other").mkdir()
    bash(recipe(), folder)
    bash(recipe(), folder / "other")
    functions = "\n".join(line for line in recipe().splitlines() if "() {" in line)
    elsewhere = "signed elsewhere -addext extendedKeyUsage=serverAuth -addext subjectAltName=DNS:elsewhere\n"
    users = "".join(f"signed {name} -addext extendedKeyUsage=clientAuth\n" for name in NAMES)
    bash(f"{functions}\n{elsewhere}{users}", folder)
    # OpenSSL 3.0's `req` knows no date of expiry, `ca` does.
    (folder / "ca.conf").write_text(
        "[ca]\ndefault_ca=d\n[d]\ndatabase=index\nserial=serial\nnew_certs_dir=.\ndefault_md=sha256\npolicy=p\n"
        "copy_extensions=copy\n[p]\ncommonName=supplied\n"
    )
    (folder / "index").write_text("")
    (folder / "serial").write_text("1000")
    for name, extensions in (("late", "-addext subjectAltName=DNS:localhost,IP:127.0.0.1"), ("latebox", "")):
        bash(
            f"openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc -subj /CN={name} -keyout {name}.key "
            f"-out {name}.csr {extensions}\nopenssl ca -batch -config ca.conf -cert ca.pem -keyfile ca.key "
            f"-in {name}.csr -out {name}.pem -startdate 20200101000000Z -enddate 20200102000000Z -notext",
            folder,
        )
    return folder


def locked_broker(folder: Path, pki: Path, certificate: str = "broker", acl: str = "") -> Mosquitto:
    """systemd/mosquitto.conf, with its folders replaced."""
    folder.mkdir()
    (folder / "int8d.acl").write_text(acl or "user box1\ntopic readwrite #\nuser camera1\ntopic readwrite #\n")
    text = (ROOT / "systemd" / "mosquitto.conf").read_text()
    for old, new in {
        "listener 8883": "user root\nlistener {port}",
        "/etc/mosquitto/certs/ca.pem": f"{pki}/ca.pem",
        "/etc/mosquitto/certs/broker": f"{pki}/{certificate}",
        "/etc/mosquitto": str(folder),
        "/var/lib/mosquitto": str(folder),
    }.items():
        assert old in text, f"the sample no longer has {old}"
        text = text.replace(old, new)
    return Mosquitto(folder, config=text)


def tls_toml(pki: Path, own: str | None = "box1") -> str:
    """Lines of int8d.toml below [broker]."""
    text = f'host = "localhost"\n[broker.tls]\nca = "{pki}/ca.pem"\n'
    return text + (f'cert = "{pki}/{own}.pem"\nkey = "{pki}/{own}.key"\n' if own else "")
