"""TLS to the broker, or another peer: a context from PEM files, and a handshake's failure in words that say what to do.

    context(Tls(ca="ca.pem", cert="box1.pem", key="box1.key"))     # an ssl.SSLContext, or ConfigError

The peer's certificate and its host name are always verified; there is no setting to leave that out. docs/security.md
has the recipe for an authority of one's own.
"""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass
from typing import Protocol

from agent.errors import ConfigError

VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


class TlsFiles(Protocol):
    """PEM files: the authority's, and this client's own; the lowest version of TLS that is spoken."""

    @property
    def ca(self) -> str | None: ...
    @property
    def cert(self) -> str | None: ...
    @property
    def key(self) -> str | None: ...
    @property
    def min_version(self) -> str: ...


@dataclass(frozen=True)
class Peer:
    """Whom a connection is with, and what the settings are called that it depends on."""

    name: str = "the broker"
    ca: str = "broker.tls.ca"
    cert: str = "broker.tls.cert"
    key: str = "broker.tls.key"
    own: str = "broker.tls.cert and key"
    host: str = "broker.host"
    min_version: str = "broker.tls.min_version"
    plain: str = "set broker.port to its TLS listener (8883), or leave [broker.tls] out"


BROKER = Peer()


def context(files: TlsFiles, peer: Peer = BROKER) -> ssl.SSLContext:
    """For a client. Raises ``ConfigError`` for files that can't be read, are no PEM, or do not belong together."""
    if files.ca is not None:
        _readable(files.ca, peer.ca)
    try:
        made = ssl.create_default_context(cafile=files.ca)
    except (ssl.SSLError, OSError) as e:
        raise ConfigError(f"{peer.ca} '{files.ca}' holds no certificate in PEM form ({e})") from e
    made.minimum_version = VERSIONS[files.min_version]
    if files.cert is None or files.key is None:
        return made
    _readable(files.cert, peer.cert)
    _readable(files.key, peer.key)
    try:
        made.load_cert_chain(files.cert, files.key, _no_passphrase)
    except ssl.SSLError as e:
        if e.reason == "KEY_VALUES_MISMATCH":
            why = "do not belong together: name the key that this certificate was made for"
        else:
            why = f"are not a certificate and a private key in PEM form ({e})"
        raise ConfigError(f"{peer.cert} '{files.cert}' and {peer.key} '{files.key}' {why}") from e
    except _Encrypted as e:
        raise ConfigError(
            f"{peer.key} '{files.key}' is protected by a passphrase, which nobody is here to type: store it "
            "without one, readable by its owner alone, or as a systemd credential"
        ) from e
    return made


class _Encrypted(Exception):
    pass


def _no_passphrase() -> str:
    """OpenSSL would ask on the terminal."""
    raise _Encrypted


def _readable(path: str, name: str) -> None:
    try:
        os.close(os.open(path, os.O_RDONLY))
    except OSError as e:
        raise ConfigError(f"{name} '{path}' can't be read ({e.strerror})") from e


# By OpenSSL's number of a failed verification; p: the peer.
_VERIFY = {
    9: "{p.name}'s certificate is not valid yet: is this box's clock right?",
    10: "{p.name}'s certificate has expired: renew it on {p.name}, or set this box's clock",
    18: "{p.name}'s certificate is signed by no authority that is trusted here: set {p.ca} to its PEM file",
    62: "{p.name}'s certificate is not for this host name: set {p.host} to a name in the certificate, or make one "
    "with this name in its subjectAltName",
}
_VERIFY |= dict.fromkeys((2, 19, 20, 21), _VERIFY[18]) | {64: _VERIFY[62]}

_OWN = "{p.own} to a certificate of the authority that {p.name} trusts"
# By OpenSSL's name of an alert or error.
_REASONS = {
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": f"{{p.name}} wants a client certificate: set {_OWN}",
    "SSLV3_ALERT_HANDSHAKE_FAILURE": f"{{p.name}} breaks the handshake off, perhaps for want of a client certificate: "
    f"set {_OWN}",
    "TLSV1_ALERT_UNKNOWN_CA": f"{{p.name}} does not know the authority that signed our certificate: set {_OWN}",
    "SSLV3_ALERT_BAD_CERTIFICATE": f"{{p.name}} does not take our certificate: set {_OWN}",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": f"{{p.name}} does not take our certificate: set {_OWN}",
    "TLSV1_ALERT_DECRYPT_ERROR": f"{{p.name}} does not take our certificate: set {_OWN}",
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE": "our certificate is not for clients: make one with "
    "extendedKeyUsage=clientAuth",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "our certificate has expired, as {p.name} sees it: make a new one for {p.cert}",
    "SSLV3_ALERT_CERTIFICATE_REVOKED": "our certificate is revoked: make a new one for {p.cert}",
    "WRONG_VERSION_NUMBER": "{p.name} does not speak TLS on this port: {p.plain}",
}
_OLD = "{p.name} speaks no version of TLS that is taken here: let it speak {p.min_version} or later"
_REASONS |= dict.fromkeys(("TLSV1_ALERT_PROTOCOL_VERSION", "UNSUPPORTED_PROTOCOL", "WRONG_SSL_VERSION"), _OLD)


def explain(error: OSError, peer: Peer = BROKER) -> str:
    """Why a connection over TLS came to nothing, with what to do where that can be told; else the error's own words.

    For an error from the first byte to the broker's CONNACK. Under TLS 1.3 a broker refuses our certificate after our
    side of the handshake is done: its reason comes out of the first read, and a write before it may only say that the
    connection is gone.
    """
    if isinstance(error, ssl.SSLCertVerificationError):
        advice = _VERIFY.get(error.verify_code)
    elif isinstance(error, ssl.SSLEOFError | ConnectionResetError | BrokenPipeError):
        advice = "{p.name} hung up on TLS: does it speak TLS on this port, and take our certificate?"
    elif isinstance(error, ssl.SSLError):
        advice = _REASONS.get(error.reason or "")
    else:
        advice = None
    return f"{advice.format(p=peer)} ({error})" if advice else str(error)
