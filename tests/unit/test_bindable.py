"""Which directories a recursive bind shows as they are (`linux.bindable`)."""

from __future__ import annotations

import pytest

from craterun.linux.bindable import is_bindable
from craterun.linux.proc import parse_mountinfo

LINE = "29 1 8:1 {root} {point} rw,relatime {propagation} - {kind} /dev/vda rw"
PIN = {"kind": "nsfs", "root": "mnt:[4026532570]"}
UNBINDABLE = {"propagation": "unbindable"}


def table(*mounts: dict[str, str]) -> str:
    usual = {"root": "/", "point": "/", "propagation": "shared:1", "kind": "ext4"}
    return "\n".join(LINE.format(**(usual | mount)) for mount in mounts)


@pytest.mark.parametrize(
    ("mounts", "bindable"),
    [
        ([], True),
        ([{}], True),
        ([UNBINDABLE], False),
        ([UNBINDABLE, {"point": "/srv"}], True),
        ([UNBINDABLE, {"point": "/srv/root"}], True),
        ([{}, UNBINDABLE | {"point": "/srv/root"}], False),
        ([{}, UNBINDABLE | {"point": "/srv/root"}, {"point": "/srv/root"}], True),
        ([{}, UNBINDABLE | {"point": "/srv/rooted"}], True),
        ([{}, UNBINDABLE | {"point": "/srv/root/a/b"}], False),
        ([{}, PIN | {"point": "/srv/root/run/ns"}], False),
        ([{}, PIN | {"point": "/run/ns"}], True),
        ([{}, {"point": "/srv/root/run/net", "kind": "nsfs", "root": "net:[4026532570]"}], True),
    ],
)
def test_what_is_mounted_around_and_inside_decides(
    mounts: list[dict[str, str]], bindable: bool
) -> None:
    assert is_bindable("/srv/root", parse_mountinfo(table(*mounts))) == bindable


def test_everything_is_inside_of_the_root() -> None:
    assert not is_bindable("/", parse_mountinfo(table({}, UNBINDABLE | {"point": "/a"})))
    assert is_bindable("/", parse_mountinfo(table({}, {"point": "/a"})))
