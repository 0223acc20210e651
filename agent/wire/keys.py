"""Keys of the end-to-end encryption in files and as text.

A private key is a PKCS #8 file in PEM form, as ``int8d key new`` and ``openssl genpkey -algorithm X25519`` write it. A
public key is ``x25519:`` and 43 characters of URL-safe base64.
"""

from __future__ import annotations

import base64
import binascii

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from agent.errors import ConfigError
from agent.files import write_new_secret
from agent.wire.hpke import KEY_BYTES, PrivateKey

_SCHEME = "x25519:"


def create(path: str) -> PrivateKey:
    """A new key, in a new file that its owner alone can read. Raises ``ConfigError`` where there is such a file."""
    key = X25519PrivateKey.generate()
    text = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    write_new_secret(path, text)
    return PrivateKey(key)


def load(path: str) -> PrivateKey:
    """Raises ``ConfigError`` where the file can't be read or holds no X25519 key."""
    try:
        with open(path, "rb") as file:
            text = file.read(65536)
    except OSError as e:
        raise ConfigError(f"{path}: can't be read ({e.strerror}); make a key with: int8d key new {path}") from e
    try:
        key = serialization.load_pem_private_key(text, None)
    except (ValueError, TypeError) as e:
        raise ConfigError(f"{path}: not a private key in PEM form without a passphrase ({e})") from e
    if not isinstance(key, X25519PrivateKey):
        raise ConfigError(f"{path}: a key of another kind; make an X25519 key with: int8d key new FILE")
    return PrivateKey(key)


def public_text(public: bytes) -> str:
    """``x25519:…``."""
    return _SCHEME + base64.urlsafe_b64encode(public).decode().rstrip("=")


def parse_public(text: str) -> bytes:
    """The 32 bytes of ``x25519:…``. Raises ``ConfigError``."""
    try:
        public = base64.b64decode(text.removeprefix(_SCHEME) + "=", altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        public = b""
    # A second form of the same bytes would be a second name for one key.
    if len(public) != KEY_BYTES or public_text(public) != text:
        raise ConfigError(f"'{text}' is no public key: {_SCHEME} and 43 characters, as `int8d key show FILE` prints it")
    try:
        PrivateKey.generate().exchange(public)
    except ValueError as e:
        raise ConfigError(f"'{text}' is a public key that nobody can have made") from e
    return public
