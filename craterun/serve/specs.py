"""Specs between a worker and the server, as JSON of whatever texts they have.

msgspec has no way to say bytes of an argument that are no UTF-8, which are lone surrogates in
Python. Nothing but control characters is escaped, so that a text hardly becomes longer on its way.
"""

from __future__ import annotations

import json
from typing import TypeVar

import msgspec

_T = TypeVar("_T")


def encode(value: object) -> bytes:
    """Of whatever `msgspec.to_builtins` takes."""
    text = json.dumps(msgspec.to_builtins(value), ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "surrogatepass")


def decode(data: bytes, kind: type[_T]) -> _T:
    """What `encode` has encoded.

    :raises ValueError: it is none of that kind
    """
    return msgspec.convert(json.loads(data.decode("utf-8", "surrogatepass")), kind)
