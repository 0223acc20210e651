"""TLS to the broker: a context from PEM files, and a handshake's failure in words that say what to do.

    context(Tls(ca="ca.pem", cert="box1.pem", key="box1.key"))     # an ssl.SSLContext, or ConfigError

The broker's certificate and its host name are always verified; there is no setting to leave that out. docs/security.md
has the recipe for an authority of one's own.
"""

from __future__ import annotations

import os
import ssl
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


def context(files: TlsFiles) -> ssl.SSLContext:
    """For a client. Raises ``ConfigError`` for files that can't be read, are no PEM, or do not belong together."""
    if files.ca is not None:
        _readable(files.ca, "ca")
    try:
        made = ssl.create_default_context(cafile=files.ca)
    except (ssl.SSLError, OSError) as e:
        raise ConfigError(f"broker.tls.ca '{files.ca}' holds no certificate in PEM form ({e})") from e
    made.minimum_version = VERSIONS[files.min_version]
    if files.cert is None or files.key is None:
        return made
    _readable(files.cert, "cert")
    _readable(files.key, "key")
    try:
        made.load_cert_chain(files.cert, files.key, _no_passphrase)
    except ssl.SSLError as e:
        if e.reason == "KEY_VALUES_MISMATCH":
            why = "do not belong together: name the key that this certificate was made for"
        else:
            why = f"are not a certificate and a private key in PEM form ({e})"
        raise ConfigError(f"broker.tls.cert '{files.cert}' and key '{files.key}' {why}") from e
    except _Encrypted as e:
        raise ConfigError(
            f"broker.tls.key '{files.key}' is protected by a passphrase, which nobody is here to type: store it "
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
        raise ConfigError(f"broker.tls.{name} '{path}' can't be read ({e.strerror})") from e


_VERIFY = {
    9: "the broker's certificate is not valid yet: is this box's clock right?",
    10: "the broker's certificate has expired: renew it on the broker, or set this box's clock",
    18: "the broker's certificate is signed by no authority that is trusted here: set broker.tls.ca to its PEM file",
    62: "the broker's certificate is not for this host name: set broker.host to a name in the certificate, or make one "
    "with this name in its subjectAltName",
}
_VERIFY |= dict.fromkeys((2, 19, 20, 21), _VERIFY[18]) | {64: _VERIFY[62]}

_OWN = "broker.tls.cert and key to a certificate of the authority that the broker's cafile names"
_REASONS = {
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": f"the broker wants a client certificate: set {_OWN}",
    "SSLV3_ALERT_HANDSHAKE_FAILURE": f"the broker breaks the handshake off, perhaps for want of a client certificate: "
    f"set {_OWN}",
    "TLSV1_ALERT_UNKNOWN_CA": f"the broker does not know the authority that signed our certificate: set {_OWN}",
    "SSLV3_ALERT_BAD_CERTIFICATE": f"the broker does not take our certificate: set {_OWN}",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": f"the broker does not take our certificate: set {_OWN}",
    "TLSV1_ALERT_DECRYPT_ERROR": f"the broker does not take our certificate: set {_OWN}",
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE": "our certificate is not for clients: make one with "
    "extendedKeyUsage=clientAuth",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "our certificate has expired, as the broker sees it: make a new one for "
    "broker.tls.cert",
    "SSLV3_ALERT_CERTIFICATE_REVOKED": "our certificate is revoked: make a new one for broker.tls.cert",
    "WRONG_VERSION_NUMBER": "the broker does not speak TLS on this port: set broker.port to its TLS listener (8883), "
    "or leave [broker.tls] out",
}
_OLD = "the broker speaks no version of TLS that is taken here: let it speak broker.tls.min_version or later"
_REASONS |= dict.fromkeys(("TLSV1_ALERT_PROTOCOL_VERSION", "UNSUPPORTED_PROTOCOL", "WRONG_SSL_VERSION"), _OLD)


def explain(error: OSError) -> str:
    """Why a connection over TLS came to nothing, with what to do where that can be told; else the error's own words.

    For an error from the first byte to the broker's CONNACK. Under TLS 1.3 a broker refuses our certificate after our
    side of the handshake is done: its reason comes out of the first read, and a write before it may only say that the
    connection is gone.
    """
    if isinstance(error, ssl.SSLCertVerificationError):
        advice = _VERIFY.get(error.verify_code)
    elif isinstance(error, ssl.SSLEOFError | ConnectionResetError | BrokenPipeError):
        advice = "the broker hung up on TLS: does it speak TLS on this port, and take our certificate?"
    elif isinstance(error, ssl.SSLError):
        advice = _REASONS.get(error.reason or "")
    else:
        advice = None
    return f"{advice} ({error})" if advice else str(error)
