"""Encryption with several keys: the first encrypts, any of them decrypts."""

from __future__ import annotations

from collections.abc import Sequence


class Cipher:
    """Fernet keys, the newest first. Raises ValueError for one that is none."""

    def __init__(self, keys: Sequence[str | bytes]) -> None:
        # Not at the top: it costs a process 7 MB, and most workers have no secret to read.
        from cryptography.fernet import Fernet, InvalidToken, MultiFernet

        self._keys = MultiFernet([Fernet(key) for key in keys])
        self._refusals = (InvalidToken, TypeError)

    def encrypt(self, data: bytes) -> bytes:
        """Return `data` as only these keys can read it."""
        return self._keys.encrypt(data)

    def decrypt(self, sealed: bytes) -> bytes | None:
        """Return what was encrypted; None where none of the keys opens it."""
        try:
            return self._keys.decrypt(sealed)
        except self._refusals:
            return None
