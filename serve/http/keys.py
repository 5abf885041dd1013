"""API keys: stored as hashes, compared in constant time.

``python -m serve.http.keys KEY_ID`` creates one: it prints the key on standard error, to be handed to its user and
stored nowhere, and the line for the keys file on standard output.
"""

import argparse
import hashlib
import hmac
import re
import secrets
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_LINE = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,63}):([0-9a-fA-F]{64})")
_MAX_KEY_LENGTH = 512


@dataclass(frozen=True, repr=False)
class Keys:
    """Accepted keys, as key id to SHA-256 (lower-case hex) of the key."""

    digests: Mapping[str, str]

    @classmethod
    def load(cls, path: Path | str) -> "Keys":
        """Read a keys file: one ``key_id:sha256hex`` per line; empty lines and lines starting with # are skipped.

        Raises:
            ValueError: No such file, a malformed line (reported by number, not by content), a duplicate id, or no key
                at all.
        """
        try:
            lines = Path(path).read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise ValueError(f"the keys file {path} can't be read: {error.strerror}") from error
        digests: dict[str, str] = {}
        for number, line in enumerate(lines, start=1):
            line = line.strip()
            if not line or line.startswith("#"):
                continue
            match = _LINE.fullmatch(line)
            if not match:
                raise ValueError(f"{path}, line {number}: expected key_id:sha256hex (64 hex digits)")
            if match[1] in digests:
                raise ValueError(f"{path}, line {number}: the key id {match[1]!r} occurs twice")
            digests[match[1]] = match[2].lower()
        if not digests:
            raise ValueError(f"{path} holds no key; make one with python -m serve.http.keys KEY_ID")
        return cls(digests)

    def identify(self, key: str) -> str | None:
        """Return the id of a presented key, or None if it is unknown."""
        if len(key) > _MAX_KEY_LENGTH:
            return None
        presented = hash_key(key)
        found = None
        for key_id, digest in self.digests.items():  # no early exit: the time must not reveal the position
            if hmac.compare_digest(presented, digest):
                found = key_id
        return found


def hash_key(key: str) -> str:
    # A plain hash is enough: keys have at least 128 random bits, so a dictionary attack is hopeless.
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def presented_key(authorization: str, api_key: str | None) -> str | None:
    """Return the key in ``Authorization: Bearer KEY`` or ``x-api-key: KEY``, else None."""
    scheme, _, credentials = authorization.partition(" ")
    if scheme.lower() == "bearer" and credentials.strip():
        return credentials.strip()
    return api_key or None


def new_key(key_id: str) -> tuple[str, str]:
    """Create a key of 256 random bits and its line for the keys file.

    Raises:
        ValueError: If the id is malformed.
    """
    key = secrets.token_urlsafe(32)
    line = f"{key_id}:{hash_key(key)}"
    if not _LINE.fullmatch(line):
        raise ValueError(f"a key id must match [A-Za-z0-9][A-Za-z0-9._-]{{0,63}}, got {key_id!r}")
    return key, line


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description="Create an API key; append the line on standard output to the keys file."
    )
    parser.add_argument("key_id", help="name of the key's user, shown in the access log")
    try:
        made_key, made_line = new_key(parser.parse_args().key_id)
    except ValueError as problem:
        parser.error(str(problem))
    print(f"key, shown only once: {made_key}", file=sys.stderr)
    print(made_line)
