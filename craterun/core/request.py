"""A container as people ask for it, by options or in JSON, and the `Spec` that this means.

One mapping for all who take such requests. Fields are named after the options of ``craterun run``;
values are texts as they would be typed, or the JSON type that says the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from craterun.core.errors import UsageError, printable
from craterun.core.limits import (
    Limits,
    format_io_max,
    parse_cpu,
    parse_cpus,
    parse_io_max,
    parse_limit,
)
from craterun.core.logoptions import parse_log_options
from craterun.core.spec import Spec
from craterun.core.units import parse_env, parse_signal

_AS_THEY_ARE = (
    "command", "rootfs", "name", "hostname", "workdir", "user", "merge_output", "init",
    "cgroup_parent", "oom_score_adj", "timeout",
)  # fmt: skip
_LIMITS = (
    "memory", "memory_swap", "memory_reservation", "pids", "cpu_weight", "cpuset_cpus",
    "cpuset_mems", "io_weight",
)  # fmt: skip
_RIVALS = (("cpu", "cpus"), ("cpus", "cpu"))
"""Two fields that say the same thing: one of a request puts the other of its defaults aside."""

Text = str | None | UnsetType
Number = str | int | float | None | UnsetType


class Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What was asked for. UNSET: nothing was said; None: said to be as if nothing was.

    ``craterun run --help`` explains the fields. Sizes may be numbers of bytes.
    """

    command: tuple[str, ...] | UnsetType = UNSET
    rootfs: Text = UNSET
    name: Text = UNSET
    hostname: Text = UNSET
    env: dict[str, str] | list[str] | UnsetType | None = UNSET
    env_file: str | list[str] | UnsetType | None = UNSET
    workdir: Text = UNSET
    user: str | int | UnsetType | None = UNSET
    merge_output: bool | UnsetType | None = UNSET
    init: bool | UnsetType | None = UNSET
    memory: Number = UNSET
    memory_swap: Number = UNSET
    memory_reservation: Number = UNSET
    pids: Number = UNSET
    cpu: Number = UNSET
    cpus: Number = UNSET
    cpu_weight: Number = UNSET
    cpuset_cpus: Number = UNSET
    cpuset_mems: Number = UNSET
    io_weight: Number = UNSET
    io_max: str | list[str] | UnsetType | None = UNSET
    oom_group: bool | UnsetType | None = UNSET
    cgroup_parent: Text = UNSET
    oom_score_adj: int | UnsetType | None = UNSET
    timeout: float | UnsetType | None = UNSET
    stop_signal: str | int | UnsetType | None = UNSET
    stop_timeout: float | UnsetType | None = UNSET
    log_driver: Text = UNSET
    log_max_size: Number = UNSET
    log_max_files: int | UnsetType | None = UNSET

    def environment(self) -> dict[str, str]:
        """The variables of ``env``; those of ``env_file`` are for the reader of files to add.

        :raises UsageError: one is malformed
        """
        if isinstance(self.env, dict):
            return self.env
        return dict(parse_env(entry) for entry in self.env or ())

    def spec(self, **others: Any) -> Spec:
        """What it means, checked.

        :param others: fields of the spec that are not asked for by name
        :raises UsageError: a value is malformed, or two contradict each other
        """
        fields: dict[str, Any] = {
            name: value
            for name in _AS_THEY_ARE
            if (value := _given(getattr(self, name))) is not None
        }
        fields.setdefault("command", ())
        if self.env:
            fields["env"] = self.environment()
        if isinstance(self.user, int):
            fields["user"] = str(self.user)
        if _given(self.stop_signal) is not None:
            fields["stop_signal"] = parse_signal(str(self.stop_signal))
        if _given(self.stop_timeout) is not None:
            fields["stop_seconds"] = self.stop_timeout
        limits = {
            name: text
            for name in (*_LIMITS, "cpu", "cpus")
            if (text := _text(getattr(self, name))) is not None
        }
        io_max = [self.io_max] if isinstance(self.io_max, str) else self.io_max or ()
        fields["limits"] = parse_limits(limits, io_max, _given(self.oom_group))
        driver = _given(self.log_driver)
        if driver not in (None, "file", "none"):
            raise UsageError(f"--log-driver '{printable(driver)}' is neither file nor none")
        fields["log"] = parse_log_options(
            driver, _text(self.log_max_size), _given(self.log_max_files)
        )
        spec = Spec(**{**fields, **others})
        spec.check()
        return spec


def _given(value: Any) -> Any:
    return None if value is UNSET else value


def _text(value: Number) -> str | None:
    return None if value is UNSET or value is None else str(value)


def with_defaults(request: Any, defaults: Any) -> Any:
    """``request``, and where it says nothing, what ``defaults`` say.

    Variables are added up. Both are of one class, `Request` or one that adds fields to it.
    """
    fields = {}
    for name in defaults.__struct_fields__:
        value = getattr(defaults, name)
        if value is not UNSET and getattr(request, name) is UNSET:
            fields[name] = value
    for ours, theirs in _RIVALS:
        if getattr(request, ours) is not UNSET:
            fields.pop(theirs, None)
    if request.log_driver == "none":
        fields.pop("log_max_size", None)
        fields.pop("log_max_files", None)
    if request.env and defaults.env:
        fields["env"] = {**defaults.environment(), **request.environment()}
    return msgspec.structs.replace(request, **fields) if fields else request


def parse_limits(
    texts: Mapping[str, str], io_max: Sequence[str] = (), oom_group: bool | None = None
) -> Limits:
    """The limits that texts mean, by the name of their option, with ``_`` for ``-``.

    :raises UsageError: one is malformed, or two contradict each other
    """
    fields: dict[str, object] = {
        name: parse_limit(name, texts[name]) for name in _LIMITS if name in texts
    }
    if "cpu" in texts and "cpus" in texts:
        raise UsageError("--cpu and --cpus say the same thing; give one of them")
    if "cpu" in texts:
        fields["cpu_quota"], fields["cpu_period"] = parse_cpu(texts["cpu"])
    if "cpus" in texts:
        fields["cpu_quota"], fields["cpu_period"] = parse_cpus(texts["cpus"])
    fields["io_max"] = tuple(format_io_max(*parse_io_max(entry)) for entry in io_max)
    fields["oom_group"] = oom_group
    return Limits(**fields)  # type: ignore[arg-type]  # each parser returns its field's type
