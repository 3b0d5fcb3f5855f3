"""What /proc says, parsed: names and paths in there are chosen by anybody."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from craterun.linux.proc import (
    Mount,
    parse_cgroup,
    parse_mountinfo,
    parse_start_time,
    parse_state,
)

LINE = "36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 shared:2 - ext3 /dev/root rw,errors=continue"


# --- mountinfo ------------------------------------------------------------------------------------


def test_the_manuals_own_line_is_understood() -> None:
    assert parse_mountinfo(LINE + "\n") == [
        Mount("98:0", "/mnt1", "/mnt2", "ext3", ("rw", "errors=continue"), readonly=False)
    ]


def test_a_mount_without_optional_fields_is_understood() -> None:
    (mount,) = parse_mountinfo("22 27 0:21 / /proc ro,nosuid - proc proc rw")
    assert mount == Mount("0:21", "/", "/proc", "proc", ("rw",), readonly=True)


def test_read_only_is_the_mounts_own_option_not_the_filesystems() -> None:
    (mount,) = parse_mountinfo("1 2 0:1 / /x rw,relatime - tmpfs none ro")
    assert not mount.readonly
    (mount,) = parse_mountinfo("1 2 0:1 / /x rw,root=1 - tmpfs none rw")
    assert not mount.readonly


def test_mounts_come_in_the_order_in_which_they_are_stacked() -> None:
    text = "1 2 0:1 / /x rw - tmpfs a rw\n2 2 0:2 / /x rw - proc b rw\n"
    assert [mount.kind for mount in parse_mountinfo(text)] == ["tmpfs", "proc"]


@pytest.mark.parametrize(
    "line", ["", "garbage", "1 2 0:1 / /x rw", "1 2 - ext4 a rw", "1 2 0:1 / /x rw - ext4", " - "]
)
def test_a_line_that_is_not_a_mount_is_passed_over(line: str) -> None:
    assert parse_mountinfo(f"{line}\n{LINE}\n{line}") == parse_mountinfo(LINE)


def _as_the_kernel_escapes(path: str) -> str:
    for char in "\\ \t\n":
        path = path.replace(char, f"\\{ord(char):03o}")
    return path


@given(
    st.text(
        st.one_of(
            st.sampled_from(" \t\n\\014#-\x0b\x0c\x1c\x85\u2028"),
            st.characters(exclude_characters="\0", codec="utf-8"),
        )
    ),
    st.text(st.sampled_from("/a \\40\n")),
)
def test_a_path_is_given_back_whatever_characters_it_has(point: str, root: str) -> None:
    line = (
        f"1 2 0:1 /{_as_the_kernel_escapes(root)} /{_as_the_kernel_escapes(point)} "
        "rw shared:1 - tmpfs none rw"
    )
    (mount,) = parse_mountinfo(line + "\n")
    assert (mount.root, mount.point) == (f"/{root}", f"/{point}")


@pytest.mark.parametrize(
    ("field", "path"),
    [(r"/a\040b", "/a b"), (r"/a\134040b", r"/a\040b"), (r"/\011\012", "/\t\n"), ("/a - b", "/a")],
)
def test_an_escape_is_undone_once(field: str, path: str) -> None:
    mounts = parse_mountinfo(f"1 2 0:1 / {field} rw - tmpfs none rw\n")
    if " - " in field:  # a blank is always escaped: this is not a line that a kernel writes
        assert mounts == []
    else:
        assert [mount.point for mount in mounts] == [path]


# --- cgroup ---------------------------------------------------------------------------------------


def test_each_controller_has_its_path_and_version_2_the_empty_name() -> None:
    text = "12:cpu,cpuacct:/a\n5:name=systemd:/s\n2:memory:/a/b\n0::/user.slice/x:y\n"
    assert parse_cgroup(text) == {
        "cpu": "/a",
        "cpuacct": "/a",
        "name=systemd": "/s",
        "memory": "/a/b",
        "": "/user.slice/x:y",
    }


def test_no_cgroups_are_an_empty_answer() -> None:
    assert parse_cgroup("") == {}


@given(st.text(st.characters(exclude_characters="\n\0", codec="utf-8")))
def test_a_cgroup_path_may_hold_everything_but_a_line_end(path: str) -> None:
    text = f"3:pids:/{path}\n0::/{path}\n"
    assert parse_cgroup(text) == {"pids": f"/{path}", "": f"/{path}"}


# --- stat -----------------------------------------------------------------------------------------


def stat(name: bytes, state: str, start_time: int) -> bytes:
    fields = [state, *(str(n) for n in range(4, 22)), str(start_time), *(str(n) for n in range(30))]
    return b"4711 (" + name + b") " + " ".join(fields).encode() + b"\n"


@given(
    st.one_of(
        st.binary(max_size=15),
        st.sampled_from([b") S 1 2 3", b"((", b"a b) Z (", b") ", b"\n", b")"]),
    ),
    st.sampled_from("RSDZTtXI"),
    st.integers(0, 2**64 - 1),
)
def test_a_process_name_cannot_forge_the_fields_behind_it(
    name: bytes, state: str, start_time: int
) -> None:
    text = stat(name, state, start_time)
    assert parse_state(text) == state
    assert parse_start_time(text) == start_time
