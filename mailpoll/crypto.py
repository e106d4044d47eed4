"""Credentials and data keys at rest: AES-256-GCM, bound to the account and field they belong to.

The associated data is the account's UUID and the name of the field, so a ciphertext copied into
another row does not decrypt (OWASP ASVS 5.0, 11.3.3).
"""

import base64
import hashlib
import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

NONCE_BYTES = 12
FORMAT = "v1"
#: Characters of a key's public name, which stands behind the format.
KEY_ID = 8


class DecryptionError(Exception):
    """No key of the ring opens the value: it was changed, moved, or its key is gone."""


class DataKeyError(DecryptionError):
    """The key of an account's blobs is not to be had: nothing of it can be read or written now."""


def key_id(key: str) -> str:
    """A short public name of a key: eight hex digits of its hash."""
    return hashlib.sha256(key.encode()).hexdigest()[:KEY_ID]


class KeyRing:
    """Encrypts with the first key and decrypts with any.

    Parameters:
      keys: 32-byte keys in URL-safe base64, newest first.
    """

    def __init__(self, keys: list[str]) -> None:
        self.current = key_id(keys[0])
        self._ciphers = {key_id(key): AESGCM(base64.urlsafe_b64decode(key)) for key in keys}

    @property
    def ids(self) -> list[str]:
        """The public names of its keys, newest first."""
        return list(self._ciphers)

    def encrypt(self, text: str, context: str) -> str:
        """Encrypt ``text`` so that it opens only with the same ``context`` (account and field)."""
        nonce = os.urandom(NONCE_BYTES)
        sealed = self._ciphers[self.current].encrypt(nonce, text.encode(), context.encode())
        return f"{FORMAT}.{self.current}.{base64.urlsafe_b64encode(nonce + sealed).decode()}"

    def decrypt(self, value: str, context: str) -> str:
        """Open what ``encrypt`` made.

        Raises:
          DecryptionError: wrong context, changed bytes, or no such key in the ring.
        """
        try:
            version, name, body = value.split(".")
            if version != FORMAT:
                raise ValueError(version)
            data = base64.urlsafe_b64decode(body)
            cipher = self._ciphers[name]
            return cipher.decrypt(data[:NONCE_BYTES], data[NONCE_BYTES:], context.encode()).decode()
        except (ValueError, KeyError, InvalidTag):
            raise DecryptionError(
                "a stored credential does not open with the keys in MAILPOLL_SECRET_KEY"
            ) from None
