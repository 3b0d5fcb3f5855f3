"""bench: what this machine can do with craterun, and with others."""

from __future__ import annotations

import os

from craterun.cli import closed, typed
from craterun.core.errors import CraterunError, UsageError, printable
from craterun.core.limits import Limits
from craterun.core.spec import HOST_ROOTFS, Spec
from craterun.linux.fd import require_files_for
from craterun.state.store import default_root

TYPE_CHECKING = False  # what `bench` needs is imported when it is called
if TYPE_CHECKING:
    from craterun.bench.driver import Options
    from craterun.bench.report import Report

_PEERS = ("crun", "runc", "bwrap", "podman")


def bench(
    *command: str,
    count: int = 200,
    jobs: str = "1,2,4,8",
    rounds: int = 3,
    rootfs: str = HOST_ROOTFS,
    limits: typed.LimitOptions | None = None,
    compare: str | None = None,
    log_size: str = "128m",
    form: typed.Annotated[typed.Literal["text", "json"], typed.Parameter(name="--format")] = "text",
    plot: str | None = None,
    quiet: typed.Annotated[bool, typed.Parameter(name=["--quiet", "-q"])] = False,
) -> int:
    """Measure this machine: containers per second, where the time of each goes, bytes into a log.

    Containers are started by one supervisor, with isolation, logs and records as by `run`. Peers
    are started as processes, many at once by xargs, as their users start them. All take turns.
    State is kept where it always is (--root), and removed afterwards. A server (craterun serve) is
    not used: what others have it do is no part of this. docs/bench.md explains the figures.

    Parameters
    ----------
    command
        What each container runs, after --; default: true. It has to exit with 0.
    count
        Containers in each run.
    jobs
        How many containers at once: a list to measure one after the other.
    rounds
        Runs of each contender with each of them; rates are medians over these.
    rootfs
        Absolute path of the directory that becomes the containers' root. "host": the host's
        programs read-only.
    compare
        Other runtimes to measure as well: a list of crun, runc, bwrap and podman, or "all". One
        that is not installed is named. Needs root.
    log_size
        How much a container writes for the rate into its log; 0: do not measure that.
    form
        Text for people, or JSON for programs, with everything measured.
    plot
        Write a plot to this file, as SVG.
    quiet
        Do not tell on stderr how far it is.
    """
    from craterun.bench.signals import exit_on_signals, held

    closed.require_stdout("redirect it to a file, or leave it open")
    exit_on_signals()
    try:
        with held():  # an exception in the midst of an import does not always come out as such
            from craterun.bench.driver import Options
            from craterun.linux.userns import become_root

        peers = _names(compare)
        if peers and os.geteuid() != 0:
            raise UsageError("--compare needs root: peers are measured as root, with cgroups")
        options = Options(
            root=default_root(),
            spec=Spec(
                command=command or ("true",),
                rootfs=rootfs,
                limits=limits.parse() if limits is not None else Limits(),
            ),
            count=_positive("--count", count),
            rounds=_positive("--rounds", rounds),
            jobs=_numbers("--jobs", jobs),
            compare=peers,
            log_mebibytes=_mebibytes(log_size),
        )
        options.spec.check()
        require_files_for(min(max(options.jobs), count), "--jobs")
        if plot is not None:
            _check_plot(plot)
        become_root()
        return _measure_and_tell(options, form, plot, quiet)
    except SystemExit as leaving:
        # An exit code is all that is left of it: while Python takes itself down for a SystemExit,
        # signals have their defaults back, and one more would kill it instead.
        return int(leaving.code or 0)


def _measure_and_tell(options: Options, form: str, plot: str | None, quiet: bool) -> int:
    from craterun.bench.driver import measure
    from craterun.cli.output import complain

    report = measure(options, (lambda _: None) if quiet else complain)
    _print(report, form)
    for name, reason in (report.missing | report.failed).items():
        complain(f"{name} was not measured: {reason}")
    if plot is not None:  # after what was measured is told, whatever becomes of it
        from craterun.bench.plot import plot as draw

        try:
            with open(plot, "w", encoding="utf-8") as file:
                file.write(draw(report))
        except OSError as error:
            raise CraterunError(
                f"--plot {printable(plot)}: {os.strerror(error.errno or 0)}"
            ) from error
    return 125 if report.failed else 0


def _print(report: Report, form: str) -> None:
    if form == "json":
        import msgspec

        said = msgspec.json.format(msgspec.json.encode(report), indent=2).decode()
    else:
        from craterun.bench.report import text

        said = text(report)
    try:
        print(said, flush=True)
    except BrokenPipeError:
        raise  # whoever left has seen enough
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise CraterunError(f"cannot write the report to stdout: {reason}") from error


def _names(text: str | None) -> tuple[str, ...]:
    if text == "all":
        return _PEERS
    names = tuple(dict.fromkeys(name for name in (text or "").split(",") if name))
    if unknown := [name for name in names if name not in _PEERS]:
        raise UsageError(
            f"--compare knows nothing of '{unknown[0]}', only of {', '.join(_PEERS)}, and all"
        )
    return names


def _numbers(option: str, text: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"{option} '{text}' is no list of numbers, as in 1,2,4") from None
    return tuple(dict.fromkeys(_positive(option, number) for number in numbers))


def _positive(option: str, number: int) -> int:
    if number < 1:
        raise UsageError(f"{option} {number} is too few: give 1 or more")
    return number


def _mebibytes(text: str) -> int:
    from craterun.core.units import parse_bytes

    size = 0 if text == "0" else parse_bytes(text, "--log-size")
    if 0 < size < 1 << 20:
        raise UsageError(f"--log-size {text} is too little to be measured: give 1m or more, or 0")
    return size >> 20


def _check_plot(path: str) -> None:
    """Before minutes are spent: that this can be written, and what it will be."""
    if not path.endswith(".svg"):
        raise UsageError(f"--plot writes SVG: give a name that ends in .svg, and not {path}")
    directory = os.path.dirname(os.path.abspath(path))
    if os.path.isdir(path):
        raise UsageError(f"--plot {path} is a directory")
    if not os.access(path if os.path.exists(path) else directory, os.W_OK):
        raise UsageError(
            f"--plot {path} cannot be written: check the directory and its permissions"
        )
