"""HPKE, single-shot, with the sender authenticated: RFC 9180, mode_auth, over X25519, HKDF-SHA256, ChaCha20-Poly1305.

    enc, ciphertext = seal(plaintext, sender=camera, to=box.public, info=b"…")
    plaintext = open_(enc, ciphertext, receiver=box, sender=camera.public, info=b"…")

The curve and the cipher are those of `cryptography`, whose own HPKE has no authenticated mode; what is here is the
RFC's key schedule between them, about ten HMACs. tests/test_sealed.py holds it against the RFC's vectors.
"""

from __future__ import annotations

import hmac

from agent.errors import ConfigError

try:
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
except ImportError as e:
    raise ConfigError("encryption needs the package cryptography: pip install 'int8d[crypto]'") from e

KEY_BYTES = 32
_MODE_AUTH = b"\x02"
_KEM = b"KEM" + (0x0020).to_bytes(2)  # DHKEM(X25519, HKDF-SHA256)
_SUITE = b"HPKE" + b"".join(n.to_bytes(2) for n in (0x0020, 0x0001, 0x0003))


class OpenError(Exception):
    """It is not what was sealed: other bytes, keys or info."""


class PrivateKey:
    """An X25519 key pair. public: its 32 bytes."""

    def __init__(self, key: X25519PrivateKey) -> None:
        self._key = key
        self.public = key.public_key().public_bytes_raw()

    @classmethod
    def generate(cls) -> PrivateKey:
        return cls(X25519PrivateKey.generate())

    def exchange(self, public: bytes) -> bytes:
        """The shared point. Raises ValueError where ``public`` is of low order."""
        return self._key.exchange(X25519PublicKey.from_public_bytes(public))


def seal(plaintext: bytes, sender: PrivateKey, to: bytes, info: bytes, aad: bytes = b"") -> tuple[bytes, bytes]:
    """(encapsulated key of 32 bytes, ciphertext with its tag of 16). Raises ValueError for a key of low order."""
    ephemeral = PrivateKey.generate()
    shared = _shared(ephemeral.exchange(to) + sender.exchange(to), ephemeral.public + to + sender.public)
    key, nonce = _schedule(shared, info)
    return ephemeral.public, ChaCha20Poly1305(key).encrypt(nonce, plaintext, aad)


def open_(enc: bytes, ciphertext: bytes, receiver: PrivateKey, sender: bytes, info: bytes, aad: bytes = b"") -> bytes:
    """The plaintext, which the owner of ``sender`` sealed for ``receiver``. Raises ``OpenError``."""
    try:
        shared = _shared(receiver.exchange(enc) + receiver.exchange(sender), enc + receiver.public + sender)
        key, nonce = _schedule(shared, info)
        return ChaCha20Poly1305(key).decrypt(nonce, ciphertext, aad)
    except (InvalidTag, ValueError) as e:
        raise OpenError from e


def _shared(points: bytes, context: bytes) -> bytes:
    """ExtractAndExpand of section 4.1."""
    return _expand(_extract(b"", b"eae_prk", points, _KEM), b"shared_secret", context, KEY_BYTES, _KEM)


def _schedule(shared: bytes, info: bytes) -> tuple[bytes, bytes]:
    """Key and nonce of the first and only message: KeySchedule of section 5.1, without a pre-shared key."""
    context = _MODE_AUTH + _NO_PSK + _extract(b"", b"info_hash", info, _SUITE)
    secret = _extract(shared, b"secret", b"", _SUITE)
    return _expand(secret, b"key", context, 32, _SUITE), _expand(secret, b"base_nonce", context, 12, _SUITE)


def _extract(salt: bytes, label: bytes, material: bytes, suite: bytes) -> bytes:
    """LabeledExtract of section 4."""
    return hmac.digest(salt, b"HPKE-v1" + suite + label + material, "sha256")


def _expand(secret: bytes, label: bytes, info: bytes, length: int, suite: bytes) -> bytes:
    """LabeledExpand of section 4, of one block of HKDF: at most 32 bytes."""
    text = length.to_bytes(2) + b"HPKE-v1" + suite + label + info
    return hmac.digest(secret, text + b"\x01", "sha256")[:length]


_NO_PSK = _extract(b"", b"psk_id_hash", b"", _SUITE)
