"""Requests for a container, from options or JSON: one meaning, one set of complaints."""

from __future__ import annotations

import inspect
from dataclasses import fields
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from craterun.cli.limits import LimitOptions
from craterun.cli.run import run
from craterun.core.errors import UsageError
from craterun.core.limits import Limits
from craterun.core.logoptions import LogOptions
from craterun.core.request import Request, parse_limits, with_defaults
from craterun.core.spec import Spec

ABOUT_THE_CALLER = {
    "interactive", "tty", "detach_keys", "attach", "quiet", "detach", "rm", "cidfile", "limits",
    "restart",
}  # fmt: skip
"""Options of run that say what its caller does meanwhile, not what the container is like."""


def request(**asked: Any) -> Request:
    """As from a line of JSON."""
    return msgspec.json.decode(msgspec.json.encode(asked), type=Request)


def test_every_option_of_run_about_the_container_can_be_asked_for_in_json() -> None:
    options = set(inspect.signature(run).parameters) - ABOUT_THE_CALLER
    options |= {field.name for field in fields(LimitOptions)}
    assert set(Request.__struct_fields__) == options


def test_a_request_that_says_nothing_else_means_the_defaults() -> None:
    assert request(command=["true"]).spec() == Spec(command=("true",))
    nulls = dict.fromkeys(set(Request.__struct_fields__) - {"command"})
    assert request(command=["true"], **nulls).spec() == Spec(command=("true",))


def test_values_mean_what_they_mean_on_the_command_line() -> None:
    spec = request(
        command=["true"], memory="64m", pids=7, cpus=0.5, cpuset_cpus=0, io_max="8:0 riops=5",
        oom_group=False, env=["A=1", "B=x=y"], user=1000, stop_signal="int", stop_timeout=0,
        timeout=2, log_max_size="1m", log_max_files=2, rootfs="/srv", workdir="/tmp", init=True,
    ).spec()  # fmt: skip
    limits = Limits(
        memory=64 << 20, pids=7, cpu_quota=50000, cpu_period=100000, cpuset_cpus="0",
        io_max=("8:0 riops=5",), oom_group=False,
    )  # fmt: skip
    assert spec == Spec(
        command=("true",), limits=limits, env={"A": "1", "B": "x=y"}, user="1000", stop_signal=2,
        stop_seconds=0, timeout=2, log=LogOptions(max_bytes=1 << 20, max_files=2), rootfs="/srv",
        workdir="/tmp", init=True,
    )  # fmt: skip
    assert request(command=["true"], env={"A": "1"}).spec().env == {"A": "1"}
    assert request(command=["true"], log_driver="none").spec().log.driver == "none"


@pytest.mark.parametrize(
    ("asked", "complaint"),
    [
        ({"memory": 64}, "--memory 64 is less than a page of memory"),
        ({"memory": "lots"}, "--memory 'lots' is not a size"),
        ({"cpus": 1, "cpu": "5000"}, "--cpu and --cpus say the same thing"),
        ({"cpus": -1}, "--cpus '-1' is not a number of processors"),
        ({"timeout": 0}, "--timeout 0 is no time to run for"),
        ({"stop_signal": "NONE"}, "unknown signal 'NONE'"),
        ({"log_driver": "journal"}, "--log-driver 'journal' is neither file nor none"),
        ({"log_driver": "none", "log_max_files": 1}, "have no use with --log-driver none"),
        ({"log_max_files": 0}, "0 log files are too few"),
        ({"env": ["A"]}, "invalid environment entry 'A'"),
        ({"env": {"A=B": "C"}}, "contains an equals sign"),
        ({"workdir": "tmp"}, "is not an absolute path"),
        ({"command": []}, "no command given"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_words_of_the_command_line(
    asked: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(UsageError) as caught:
        request(**{"command": ["true"], **asked}).spec()
    assert complaint in str(caught.value)


def test_a_request_goes_before_its_defaults_and_variables_add_up() -> None:
    defaults = request(memory="64m", env={"A": "1", "B": "2"}, timeout=5, cpu="5000 10000")
    ours = request(command=["true"], env=["B=3", "C=4"], timeout=None, cpus=2)
    merged = with_defaults(ours, defaults)
    assert merged.environment() == {"A": "1", "B": "3", "C": "4"}
    assert (merged.memory, merged.timeout, merged.cpus) == ("64m", None, 2)
    assert merged.spec().limits.cpu_quota == 200_000
    sized = request(log_max_size="1m", log_max_files=1)
    assert with_defaults(request(log_driver="none"), sized).log_max_size is msgspec.UNSET


@given(st.dictionaries(st.sampled_from(Request.__struct_fields__), st.none() | st.text(max_size=5)))
def test_without_defaults_a_request_stays_as_it_is(asked: dict[str, Any]) -> None:
    try:
        ours = request(**asked)
    except msgspec.ValidationError:
        return
    assert with_defaults(ours, Request()) == ours


def test_limits_are_parsed_from_their_texts() -> None:
    assert parse_limits({}) == Limits()
    assert parse_limits({"memory_swap": "-1", "memory": "1g"}).memory_swap == -1
