"""``NAME|UID[:GROUP|GID]``, and what it means by a container's passwd and group (passwd(5))."""

from __future__ import annotations

import msgspec

from craterun.core.errors import UsageError, printable
from craterun.core.spec import Identity

_MAX_ID = 2**32 - 2
"""(uid_t) -1 means "no change" to the kernel."""


class WantedUser(msgspec.Struct, frozen=True):
    """A user as typed: names, or numbers in decimal."""

    user: str
    group: str | None


def parse_user(text: str) -> WantedUser:
    """Split ``USER[:GROUP]``.

    :raises UsageError: a part is empty, or a number that no uid can be
    """
    user, colon, group = text.partition(":")
    if not user or (colon and not group) or any(c in text for c in "\0\n/"):
        raise UsageError(
            f"invalid user '{printable(text)}': write NAME, UID, NAME:GROUP or UID:GID"
        )
    for part in (user, group):
        if _is_number(part) and int(part) > _MAX_ID:
            raise UsageError(f"invalid user '{printable(text)}': {part} is above {_MAX_ID}")
    return WantedUser(user, group or None)


def resolve_user(wanted: WantedUser, passwd: str, group: str) -> Identity:
    """Numbers for ``wanted``. A number need not exist in ``passwd``; a name must.

    The supplementary groups are those that ``group`` lists the user in, unless a group was given.

    :raises UsageError: an unknown name
    """
    entry = _find(passwd, wanted.user, 7)
    if entry is None and not _is_number(wanted.user):
        raise UsageError(
            f"unknown user '{printable(wanted.user)}': not in the container's /etc/passwd"
        )
    uid = int(entry[2]) if entry else int(wanted.user)
    gid = int(entry[3]) if entry else 0
    home = entry[5] if entry and entry[5].startswith("/") and "\0" not in entry[5] else "/"
    groups: tuple[int, ...] = ()
    if wanted.group is not None:
        found = _find(group, wanted.group, 4)
        if found is None and not _is_number(wanted.group):
            raise UsageError(
                f"unknown group '{printable(wanted.group)}': not in the container's /etc/group"
            )
        gid = int(found[2]) if found else int(wanted.group)
    elif entry:
        groups = tuple(
            int(fields[2]) for fields in _entries(group, 4) if entry[0] in fields[3].split(",")
        )
    return Identity(uid=uid, gid=gid, groups=groups, home=home)


def user_names(passwd: str) -> dict[int, str]:
    """Names by uid; of several with one uid the first counts, as in getpwuid(3)."""
    names: dict[int, str] = {}
    for fields in _entries(passwd, 7):
        names.setdefault(int(fields[2]), fields[0])
    return names


def _find(text: str, wanted: str, size: int) -> list[str] | None:
    """The entry named ``wanted``; if it is a number and no name, the one with that id."""
    entries = list(_entries(text, size))
    for fields in entries:
        if fields[0] == wanted:
            return fields
    if _is_number(wanted):
        for fields in entries:
            if int(fields[2]) == int(wanted):
                return fields
    return None


def _entries(text: str, size: int) -> list[list[str]]:
    """Well-formed lines only: the file is the container's and may hold anything."""
    lines = (line.split(":") for line in text.split("\n"))
    return [
        fields
        for fields in lines
        if len(fields) == size
        and all(_is_number(n) and int(n) <= _MAX_ID for n in fields[2 : 4 if size == 7 else 3])
    ]


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 10
