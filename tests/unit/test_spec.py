"""What no host could run is refused before anything is done."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from craterun.core.errors import CraterunError, UsageError
from craterun.core.spec import MAX_ARGUMENT_BYTES, Spec, check_process

ANY_TEXT = st.text(st.one_of(st.characters(), st.characters(categories=["Cs"])), max_size=20)


def check(**asked: Any) -> None:
    Spec(**{"command": ("true",), **asked}).check()


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"name": "web-1", "hostname": "web.example"},
        {"env": {"A": "", "B": "x=y", "ü": "ü"}},
        {"workdir": "/srv/with blank"},
        {"command": ("printf", "", "a\nb")},
        {"command": ("x", "a" * (MAX_ARGUMENT_BYTES - 1))},
    ],
    ids=repr,
)
def test_a_sensible_request_passes(asked: dict[str, Any]) -> None:
    check(**asked)


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({"command": ()}, "no command"),
        ({"command": ("",)}, "no command"),
        ({"command": ("", "x")}, "no command"),
        ({"command": ("x", "a\0b")}, "NUL"),
        ({"name": ""}, "invalid name"),
        ({"name": "../x"}, "invalid name"),
        ({"hostname": ""}, "invalid hostname"),
        ({"hostname": "x" * 65}, "65 bytes"),
        ({"env": {"": "x"}}, "KEY=VALUE"),
        ({"env": {"A\0": "x"}}, "KEY=VALUE"),
        ({"env": {"A": "\0"}}, "NUL"),
        ({"workdir": ""}, "not an absolute path"),
        ({"workdir": "srv"}, "not an absolute path"),
        ({"workdir": "/a\0"}, "not an absolute path|NUL"),
    ],
    ids=repr,
)
def test_a_senseless_request_is_refused_with_the_reason(asked: dict[str, Any], why: str) -> None:
    with pytest.raises(UsageError, match=why) as caught:
        check(**asked)
    assert str(caught.value).isprintable()


def test_an_argument_longer_than_the_kernel_takes_is_refused_with_both_sizes() -> None:
    with pytest.raises(UsageError, match="131072 bytes; the kernel takes 131071 in one"):
        check(command=("x", "a" * MAX_ARGUMENT_BYTES))
    with pytest.raises(UsageError, match="131072 bytes"):
        check(env={"A": "a" * (MAX_ARGUMENT_BYTES - 2)})
    check(env={"A": "a" * (MAX_ARGUMENT_BYTES - 3)})


def test_sizes_are_counted_in_bytes_not_in_characters() -> None:
    with pytest.raises(UsageError, match="argument list too long"):
        check(command=("x", "ü" * (MAX_ARGUMENT_BYTES // 2)))


def test_the_message_about_a_huge_argument_is_short_itself() -> None:
    with pytest.raises(UsageError) as caught:
        check(command=("x", "\x1b" * MAX_ARGUMENT_BYTES))
    assert len(str(caught.value)) < 400


def test_an_environment_name_with_an_equals_sign_is_refused() -> None:
    # execve would be given A=B=c, which is another variable; CPython refuses it in the child.
    with pytest.raises(UsageError):
        check(env={"A=B": "c"})


def test_an_unknown_capability_is_refused() -> None:
    with pytest.raises(UsageError, match="NO_SUCH"):
        check(capabilities=("CHOWN", "NO_SUCH"))


@given(st.lists(ANY_TEXT, max_size=3), st.dictionaries(ANY_TEXT, ANY_TEXT, max_size=3), ANY_TEXT)
@example(["\ud800"], {}, "")
@example(["x"], {"A": "\ud800"}, "")
def test_any_text_passes_or_is_a_usage_error_but_never_a_traceback(
    command: list[str], env: dict[str, str], workdir: str
) -> None:
    try:
        check_process(tuple(command), env, f"/{workdir}")
    except CraterunError as error:
        assert str(error).isprintable()  # noqa: PT017


def test_a_spec_from_outside_may_not_hold_unknown_fields() -> None:
    assert msgspec.json.decode(b'{"command": ["x"]}', type=Spec) == Spec(command=("x",))
    with pytest.raises(msgspec.ValidationError, match="privileged"):
        msgspec.json.decode(b'{"command": ["x"], "privileged": true}', type=Spec)


def test_nobody_can_change_a_spec_that_was_checked() -> None:
    spec = Spec(command=("x",))
    with pytest.raises(AttributeError, match="immutable"):
        spec.workdir = "relative"  # type: ignore[misc]
