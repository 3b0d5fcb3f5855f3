"""Root, or a user namespace in which the caller is root."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from craterun.core import flags as f
from craterun.core.errors import NeedsRootError
from craterun.linux import calls, userns
from tests.kernel.forked import enter_new, in_child, parked

_UID, _GID = 4242, 4343


def become_somebody() -> None:
    """For a child: an ordinary user, as after a login."""
    os.setgroups([])
    os.setresgid(_GID, _GID, _GID)
    os.setresuid(_UID, _UID, _UID)
    calls.prctl(f.PR_SET_DUMPABLE, 1)  # a change of uid made /proc/self root's


def test_root_stays_where_it_is() -> None:
    def become() -> bool:
        before = os.readlink("/proc/self/ns/user")
        userns.become_root()
        userns.require_root()
        return os.readlink("/proc/self/ns/user") == before

    assert in_child(become)


def test_anybody_else_becomes_root_of_a_namespace_that_maps_only_them() -> None:
    def become() -> tuple[int, int, list[str], list[str], str]:
        become_somebody()
        userns.become_root()
        userns.require_root()
        maps = [Path(f"/proc/self/{kind}_map").read_text().split() for kind in ("uid", "gid")]
        denied = Path("/proc/self/setgroups").read_text().strip()
        return os.geteuid(), os.getegid(), maps[0], maps[1], denied

    expected = (0, 0, ["0", str(_UID), "1"], ["0", str(_GID), "1"], "deny")
    assert in_child(become) == expected


def test_a_kernel_that_grants_no_user_namespace_is_an_error_with_advice() -> None:
    def become() -> str:
        enter_new("user")  # a namespace that we may limit
        Path("/proc/sys/user/max_user_namespaces").write_text("0")
        with pytest.raises(NeedsRootError) as caught:
            userns.become_root()
        return str(caught.value)

    message = in_child(become)
    assert "run it with sudo" in message
    assert "No space left" in message


def test_who_is_not_root_is_told_so() -> None:
    def require() -> str:
        become_somebody()
        with pytest.raises(NeedsRootError) as caught:
            userns.require_root()
        return str(caught.value)

    assert f"this is uid {_UID}" in in_child(require)


def test_a_process_in_another_user_namespace_is_told_apart() -> None:
    with parked() as ours, parked(lambda: enter_new("user")) as theirs:
        assert userns.same_user_namespace(ours)
        assert not userns.same_user_namespace(theirs)
    with pytest.raises(FileNotFoundError):
        userns.same_user_namespace(ours)
