"""/proc files of a process, which may call itself anything."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from craterun.core.processes import (
    Stat,
    describe,
    inside_id,
    parse_arguments,
    parse_stat,
    parse_status,
)
from craterun.core.users import user_names

STATUS = b"Name:\tx\nUid:\t1000\t1001\t1002\t1003\nNSpid:\t300\t12\t1\nVmRSS:\t     20 kB\n"
NOW = datetime(2026, 1, 2, tzinfo=UTC)


def stat_line(name: bytes) -> bytes:
    numbers = b" ".join(b"%d" % n for n in range(4, 53))
    return b"17 (" + name + b") R " + numbers + b"\n"


@given(st.binary(max_size=15))
def test_whatever_the_name_holds_the_fields_are_found(name: bytes) -> None:
    # Fields are numbered from 1 (proc_pid_stat(5)); each has its number as value here.
    found = parse_stat(stat_line(name))
    assert found == Stat(name.decode("utf-8", "backslashreplace"), "R", 14 + 15, 22)


@pytest.mark.parametrize("content", [b"", b"1 (x", b"1 (x) R 1 2"])
def test_a_torn_stat_is_an_error(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_stat(content)


def test_arguments_are_told_apart() -> None:
    assert parse_arguments(b"sh\0-c\0a b\0") == ("sh", "-c", "a b")
    assert parse_arguments(b"nginx: master") == ("nginx: master",)
    assert parse_arguments(b"") == ()
    assert parse_arguments(b"a\0\0") == ("a", "")
    assert parse_arguments(b"\xff\0") == ("\\xff",)


def test_an_id_is_looked_up_in_the_map() -> None:
    whole = "         0          0 4294967295\n"
    assert inside_id(whole, 1000) == 1000
    mapped = "0 1000 1\n1 100000 65536\n"
    assert [inside_id(mapped, n) for n in (1000, 100001, 0, 999)] == [0, 2, None, None]


def test_names_come_from_the_containers_own_file() -> None:
    passwd = "root:x:0:0::/:/bin/sh\ntoor:x:0:0::/:/bin/sh\nbad line\nalice:x:1001:5::/:/\n"
    assert user_names(passwd) == {0: "root", 1001: "alice"}


def test_a_process_is_described_as_its_container_sees_it() -> None:
    info = describe(
        300,
        Stat("x", "S", 250, 9),
        parse_status(STATUS),
        ("x", "y"),
        level=1,
        uid_map="0 0 4294967295",
        users={1001: "alice"},
        started=NOW,
        ticks_per_second=100,
    )
    assert (info.pid, info.host_pid, info.uid, info.user) == (12, 300, 1001, "alice")
    assert (info.cpu_seconds, info.rss_bytes, info.state) == (2.5, 20480, "S")


def test_a_user_that_is_not_mapped_gets_no_name() -> None:
    info = describe(
        300,
        Stat("x", "Z", 0, 9),
        parse_status(STATUS.replace(b"VmRSS", b"Other")),
        (),
        level=2,
        uid_map="0 5 1",
        users={1001: "alice"},
        started=NOW,
        ticks_per_second=100,
    )
    assert (info.pid, info.uid, info.user, info.rss_bytes) == (1, 1001, "1001", 0)
