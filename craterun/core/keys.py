"""Detach keys: a sequence of keys that leaves a terminal instead of reaching it."""

from __future__ import annotations

from craterun.core.errors import UsageError, printable

_NAMED = {"@": 0, "[": 27, "\\": 28, "]": 29, "^": 30, "_": 31}


def parse_keys(text: str) -> bytes:
    """``ctrl-p,ctrl-q`` or ``ctrl-],d``: keys separated by commas, each a character or ctrl- and a
    letter or one of ``@[\\]^_``.

    :raises UsageError: there is no such key
    """
    keys = bytearray()
    for key in text.split(","):
        control = key.lower().removeprefix("ctrl-") if key.lower().startswith("ctrl-") else None
        if control is None and len(key) == 1 and key.isascii() and key.isprintable():
            keys += key.encode()
        elif control is not None and len(control) == 1 and "a" <= control <= "z":
            keys.append(ord(control) - ord("a") + 1)
        elif control in _NAMED:
            keys.append(_NAMED[control])
        else:
            raise UsageError(
                f"--detach-keys '{printable(text)}': '{printable(key)}' is no key; write "
                "characters or ctrl-LETTER, separated by commas, as in ctrl-p,ctrl-q"
            )
    return bytes(keys)


class KeyMatcher:
    """Looks for a sequence of keys in what is typed.

    What could be the beginning of the sequence is held back until the next key tells.
    """

    def __init__(self, keys: bytes) -> None:
        """:param keys: the sequence; empty: it never comes"""
        self._keys = keys
        self._held = b""

    def feed(self, typed: bytes) -> tuple[bytes, bool]:
        """(what is to be passed on, whether the sequence was completed). After that, what was
        typed is of no interest any more.
        """
        if not self._keys:
            return typed, False
        data = self._held + typed
        found = data.find(self._keys)
        if found >= 0:
            return data[:found], True
        held = next(
            n for n in range(min(len(self._keys) - 1, len(data)), -1, -1)
            if data.endswith(self._keys[:n])
        )  # fmt: skip
        self._held = data[len(data) - held :]
        return data[: len(data) - held], False

    def rest(self) -> bytes:
        """What is still held back, at the end of the input."""
        held, self._held = self._held, b""
        return held
