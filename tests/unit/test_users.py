"""``NAME|UID[:GROUP|GID]`` against passwd and group files that may hold anything."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from craterun.core.errors import UsageError
from craterun.core.spec import Identity
from craterun.core.users import parse_user, resolve_user

PASSWD = (
    "root:x:0:0:root:/root:/bin/sh\n"
    "alice:x:1000:1001:Alice:/home/alice:/bin/sh\n"
    "1234:x:77:78:a name of digits:/odd:/bin/sh\n"
)
GROUP = "root:x:0:\nalice:x:1001:\nstaff:x:50:bob,alice\nwheel:x:10:alice\nnearly:x:51:alice2\n"


def resolve(user: str, passwd: str = PASSWD, group: str = GROUP) -> Identity:
    return resolve_user(parse_user(user), passwd, group)


# --- as typed -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "user", "group"),
    [("alice", "alice", None), ("1000", "1000", None), ("a:b", "a", "b"), ("0:0", "0", "0")],
)
def test_a_user_and_a_group_are_split_at_the_colon(text: str, user: str, group: str | None) -> None:
    wanted = parse_user(text)
    assert (wanted.user, wanted.group) == (user, group)


@pytest.mark.parametrize(
    "text", ["", ":", ":g", "u:", "u\0", "u\nv", "a/b", "4294967295", "0:4294967295", "9999999999"]
)
def test_an_empty_part_or_an_impossible_number_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_user(text)
    assert str(caught.value).isprintable()


def test_the_highest_uid_and_gid_are_taken() -> None:
    assert resolve("4294967294:4294967294") == Identity(4294967294, 4294967294, (), "/")


# --- looked up ------------------------------------------------------------------------------------


def test_the_highest_ids_in_the_files_count() -> None:
    passwd, group = "u:x:4294967294:4294967294::/:/bin/sh", "g:x:4294967294:u"
    assert resolve("u", passwd, group) == Identity(4294967294, 4294967294, (4294967294,), "/")


def test_a_name_gets_its_ids_its_home_and_the_groups_that_list_it() -> None:
    assert resolve("alice") == Identity(1000, 1001, (50, 10), "/home/alice")


def test_a_number_with_an_entry_is_that_user() -> None:
    assert resolve("1000") == resolve("alice")


def test_a_number_without_an_entry_needs_none() -> None:
    assert resolve("4711") == Identity(4711, 0, (), "/")
    assert resolve("4711:12") == Identity(4711, 12, (), "/")
    assert resolve("0", "", "") == Identity(0, 0, (), "/")


def test_a_name_of_digits_is_found_before_the_number() -> None:
    assert resolve("1234") == Identity(77, 78, (), "/odd")


def test_leading_zeros_do_not_hide_an_entry() -> None:
    assert resolve("0001000") == resolve("alice")


def test_a_group_that_was_given_replaces_the_supplementary_groups() -> None:
    assert resolve("alice:wheel") == Identity(1000, 10, (), "/home/alice")
    assert resolve("alice:50") == Identity(1000, 50, (), "/home/alice")
    assert resolve("alice:4242") == Identity(1000, 4242, (), "/home/alice")


@pytest.mark.parametrize("user", ["bob", "alice:nogroup", "root\x1b[2J", "99999999999", "-1"])
def test_a_name_that_is_not_in_the_files_is_an_error(user: str) -> None:
    with pytest.raises(UsageError) as caught:
        resolve(user)
    assert str(caught.value).isprintable()


def test_a_home_that_is_not_absolute_becomes_the_root_directory() -> None:
    assert resolve("u", "u:x:1:1::home:/bin/sh").home == "/"
    assert resolve("u", "u:x:1:1:::/bin/sh").home == "/"


def test_a_home_with_a_nul_does_not_reach_the_environment() -> None:
    # execve(2) could not take it: the launch would fail with an internal error.
    try:
        assert "\0" not in resolve("u", "u:x:1:1::/ho\0me:/bin/sh").home
    except UsageError as error:
        assert "unknown user" in str(error)  # noqa: PT017


# --- hostile files --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        "alice",
        "alice:x:1:1::/h",
        "alice:x:1:1::/h:/bin/sh:more",
        "alice:x:one:1::/h:/bin/sh",
        "alice:x:-1:1::/h:/bin/sh",
        "alice:x:1:::/h:/bin/sh",
        "alice:x:4294967295:1::/h:/bin/sh",
        "alice:x:1:99999999999::/h:/bin/sh",
        "alice:x:²:1::/h:/bin/sh",
        "alice:x: 1:1::/h:/bin/sh",
        "+alice::::::",
    ],
)
def test_a_malformed_passwd_line_is_passed_over(line: str) -> None:
    assert resolve("alice", f"{line}\n{PASSWD}") == resolve("alice")
    with pytest.raises(UsageError, match="unknown user"):
        resolve("alice", line)


@pytest.mark.parametrize(
    "line", ["g:x:one:alice", "g:x:1", "g:x:1:alice:more", "g:x:4294967295:alice"]
)
def test_a_malformed_group_line_is_passed_over(line: str) -> None:
    assert resolve("alice", group=f"{line}\n{GROUP}") == resolve("alice")
    with pytest.raises(UsageError, match="unknown group"):
        resolve("alice:g", group=line)


def test_the_first_of_two_entries_of_one_name_counts() -> None:
    passwd = "alice:x:5:5::/first:/bin/sh\n" + PASSWD
    assert resolve("alice", passwd).uid == 5


_FIELDS = st.lists(st.sampled_from(["a", "0", "7", "", "x", "4294967295", "/", "a,7", "\n", "é"]))


@given(_FIELDS, _FIELDS, st.sampled_from(["a", "0", "7", "a:a", "7:7", "a:0"]))
def test_whatever_the_files_hold_the_ids_are_ones_that_the_kernel_takes(
    passwd: list[str], group: list[str], user: str
) -> None:
    try:
        identity = resolve(user, ":".join(passwd), ":".join(group))
    except UsageError:
        return
    for number in (identity.uid, identity.gid, *identity.groups):
        assert 0 <= number < 2**32 - 1
    assert identity.home.startswith("/")
