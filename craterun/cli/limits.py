"""The options that limit a container: the same for `run` and for `update`."""

from __future__ import annotations

from dataclasses import dataclass, fields

from craterun.cli import typed
from craterun.core.limits import Limits
from craterun.core.request import parse_limits


@dataclass(frozen=True)
class LimitOptions:
    """What was typed.

    Parameters
    ----------
    memory
        Memory at most: bytes, or 64m, 1.5g; max: no limit.
    memory_swap
        Memory and swap together at most; -1 or max: no limit. Default: twice --memory.
    memory_reservation
        Memory that is taken away last when the host runs short.
    pids
        Processes and threads at most.
    cpu
        Quota and period in microseconds, as in '50000 100000' for half a processor.
    cpus
        The same as a number of processors: 0.5, 2.
    cpu_weight
        Share of scarce processors, 1 to 10000; the default is 100.
    cpuset_cpus
        Processors to run on, as in 0-1,3.
    cpuset_mems
        Memory nodes to allocate from, as in 0.
    io_weight
        Share of a busy disk, 1 to 10000; the default is 100.
    io_max
        'DEVICE KEY=N…' with the keys rbps, wbps, riops and wiops: bytes or operations in a second
        at most, as in '/dev/sda rbps=10m wiops=100'. May be repeated.
    oom_group
        When memory runs out, kill the whole container and not just one process.
    """

    # A negative number is a value, to be refused as one, and not an option.
    memory: typed.Annotated[
        str | None, typed.Parameter(name=["--memory", "-m"], allow_leading_hyphen=True)
    ] = None
    memory_swap: typed.Annotated[str | None, typed.Parameter(allow_leading_hyphen=True)] = None
    memory_reservation: typed.Annotated[str | None, typed.Parameter(allow_leading_hyphen=True)] = (
        None
    )
    pids: typed.Annotated[
        str | None, typed.Parameter(name=["--pids", "--pids-limit"], allow_leading_hyphen=True)
    ] = None
    cpu: typed.Annotated[str | None, typed.Parameter(allow_leading_hyphen=True)] = None
    cpus: typed.Annotated[str | None, typed.Parameter(allow_leading_hyphen=True)] = None
    cpu_weight: typed.Annotated[str | None, typed.Parameter(allow_leading_hyphen=True)] = None
    cpuset_cpus: typed.Annotated[str | None, typed.Parameter(allow_leading_hyphen=True)] = None
    cpuset_mems: typed.Annotated[str | None, typed.Parameter(allow_leading_hyphen=True)] = None
    io_weight: typed.Annotated[str | None, typed.Parameter(allow_leading_hyphen=True)] = None
    io_max: list[str] | None = None
    oom_group: typed.Annotated[bool | None, typed.Parameter(negative="--no-oom-group")] = None

    def parse(self) -> Limits:
        """The limits that they mean.

        :raises UsageError: one is malformed; two contradict each other
        """
        texts = {
            field.name: text
            for field in fields(self)
            if isinstance(text := getattr(self, field.name), str)
        }
        return parse_limits(texts, self.io_max or (), self.oom_group)
