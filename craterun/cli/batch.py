"""batch: a container for each line of a stream, many at once."""

from __future__ import annotations

import os
import stat
from dataclasses import fields
from typing import TYPE_CHECKING

import msgspec

from craterun.cli import closed, typed
from craterun.cli.envfiles import read_env_files
from craterun.cli.uninterrupted import uninterrupted
from craterun.core.errors import UsageError, printable
from craterun.core.spec import HOST_ROOTFS
from craterun.core.units import format_bytes, parse_bytes, parse_env
from craterun.linux.fd import require_files_for
from craterun.serve import desk
from craterun.state.store import default_root

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from craterun.batch.options import Options
    from craterun.batch.running import Host
    from craterun.cli.batchrun import Ends
    from craterun.serve.jobs import Desk

_MAX_RETRIES = 1000
"""After a crash, each container that a job could have got is looked for."""
_MAX_CAPTURE_BYTES = 64 * 1024 * 1024
_MAX_LENT_BYTES = 64 * 1024 * 1024
"""The beginnings of outputs that a server keeps in memory for one batch."""


def batch(
    file: typed.Annotated[str, typed.Parameter(allow_leading_hyphen=True)],  # it may be "-"
    *command: str,
    jobs: typed.Annotated[int | None, typed.Parameter(name=["--jobs", "-j"])] = None,
    output: typed.Annotated[str | None, typed.Parameter(name=["--output", "-o"])] = None,
    resume: bool = False,
    rerun_failed: bool = False,
    orphans: typed.Literal["wait", "rerun"] = "wait",
    retries: int = 0,
    retry_on: str = "exit,timeout,oom",
    fail_fast: bool = False,
    drain: bool = False,
    capture: str | None = None,
    keep: typed.Literal["all", "failed", "none"] | None = None,
    rm: bool = False,
    quiet: typed.Annotated[bool, typed.Parameter(name=["--quiet", "-q"])] = False,
    rootfs: str | None = None,
    env: typed.Annotated[list[str] | None, typed.Parameter(name=["--env", "-e"])] = None,
    env_file: typed.Annotated[list[str] | None, typed.Parameter(name="--env-file")] = None,
    workdir: typed.Annotated[str | None, typed.Parameter(name=["--workdir", "-w"])] = None,
    user: typed.Annotated[str | None, typed.Parameter(name=["--user", "-u"])] = None,
    merge_output: bool = False,
    init: bool = False,
    limits: typed.LimitOptions | None = None,
    cgroup_parent: str | None = None,
    oom_score_adj: typed.Annotated[int | None, typed.Parameter(allow_leading_hyphen=True)] = None,
    timeout: float | None = None,
    stop_signal: str | None = None,
    stop_timeout: float | None = None,
    log_driver: typed.Literal["file", "none"] | None = None,
    log_max_size: str | None = None,
    log_max_files: int | None = None,
) -> int:
    """Run a container for each line of FILE, and write what became of it as a line of JSON.

    A line is a JSON object: {"command": ["python3", "a.py"], "memory": "64m", "timeout": 5}. Its
    fields are the options of run with _ for -, and "key" (your own name for the job, which its
    result has), "stdin" (a text to read) or "stdin_file". Options given here hold for lines that
    say nothing else. A line that is no job is a result, too, with an error; the batch goes on.

    The input is read no further than there is a worker for, and results are written as jobs end.
    SIGINT and SIGTERM end the batch: what runs is asked to end, and its results are written; the
    second time it is killed. docs/batch.md has the fields of results.

    Exit codes: 0 if all jobs have succeeded, 1 if any has not, 128 + N after signal N, 125 for an
    error of craterun.

    Parameters
    ----------
    file
        The input; -: our stdin, which may be a pipe that is still being written to.
    command
        The command of lines that have none, after --.
    jobs
        Containers at once; default: as many as there are processors for us.
    output
        Append the results to this file instead of writing them to stdout.
    resume
        With --output: go on with the batch that has written this file, and run what has no result
        there. Jobs are known by their key, or else by the number of their line.
    rerun_failed
        With --resume: run those that have failed as well.
    orphans
        With --resume, after the batch was killed: what to do with containers that outlived it.
        "wait": their end counts, and nothing is run twice, but a piece of what they wrote in that
        very moment may be missing. "rerun": kill them, and run their jobs again.
    retries
        Further attempts for a job that has failed. What the host has failed at is tried again in
        any case, twice.
    retry_on
        What --retries are for: a list of exit (any code but 0, or killed), timeout and oom.
    fail_fast
        At the first failure, read no further, and kill what runs.
    drain
        With --fail-fast: let what runs go on to its end.
    capture
        Put the first so many bytes of each output stream into the result: 64k.
    keep
        Which containers stay, with their logs, when their results are written; default: all.
    rm
        The same as --keep none.
    quiet
        Say nothing on stderr about how far it is and what it came to.
    rootfs
        Directory that becomes the container's root. "host": the host's programs read-only.
    env
        KEY=VALUE to add to the environment. May be repeated.
    env_file
        File with a KEY=VALUE on each line; --env overrides it. May be repeated.
    workdir
        Working directory inside.
    user
        NAME or UID, optionally :GROUP or :GID, as in the container's /etc/passwd.
    merge_output
        One pipe for the command's stdout and stderr, so that their order is certain.
    init
        Run a minimal init as PID 1, which reaps orphans and forwards signals.
    cgroup_parent
        An existing cgroup to put the containers' cgroups below.
    oom_score_adj
        Whom the kernel kills first when the host runs out of memory: -1000 to 1000.
    timeout
        Seconds after which a container is stopped.
    stop_signal
        What asks a command to end, after the timeout and when the batch is ended.
    stop_timeout
        Seconds that it has to end then, before SIGKILL.
    log_driver
        "file": keep the output in files. "none": keep nothing, for --capture to be all there is.
    log_max_size
        Begin new log files before one gets larger.
    log_max_files
        How many log files of each kind to keep, the newest.
    """
    from craterun.batch.job import Job
    from craterun.batch.options import Keep, Options, Orphans
    from craterun.batch.results import RETRIED, Failure
    from craterun.cli.batchrun import Ends

    if file.startswith("-") and file != "-":
        raise UsageError(f"unknown option '{printable(file)}'; see: craterun batch --help")
    if file == "":
        raise UsageError("the name of the input is empty; -: standard input")
    if output == "":
        raise UsageError("--output is empty; to have the results on stdout, leave it away")
    if resume and output is None:
        raise UsageError("--resume needs --output: it goes on with the results in that file")
    if rerun_failed and not resume:
        raise UsageError("--rerun-failed needs --resume: it is about jobs with results already")
    if drain and not fail_fast:
        raise UsageError("--drain says how --fail-fast ends, and has no use without that")
    if rm and keep not in (None, "none"):
        raise UsageError(f"--rm and --keep {keep} contradict each other")
    if not 0 <= retries <= _MAX_RETRIES:
        raise UsageError(f"--retries {retries} is not between 0 and {_MAX_RETRIES}")
    if file == "-":
        closed.require_stdin("give FILE, or redirect stdin")
    if output is None:
        closed.require_stdout("redirect it, or give --output FILE")
    desk.leave_to_client(output)
    asked = {
        "command": command or None,
        "rootfs": rootfs,
        "env": {**read_env_files(env_file or ()), **dict(map(parse_env, env or ()))} or None,
        "workdir": workdir,
        "user": user,
        "merge_output": merge_output or None,
        "init": init or None,
        "cgroup_parent": cgroup_parent,
        "oom_score_adj": oom_score_adj,
        "timeout": timeout,
        "stop_signal": stop_signal,
        "stop_timeout": stop_timeout,
        "log_driver": log_driver,
        "log_max_size": log_max_size,
        "log_max_files": log_max_files,
    }
    if limits is not None:
        limits.parse()  # its complaint is ours, and not that of every line
        asked |= {name: getattr(limits, name) for name in (f.name for f in fields(limits))}
    given = {name: value for name, value in asked.items() if value is not None}
    defaults = Job(**given)  # type: ignore[arg-type]  # each option has its field's type
    # Likewise: a default that no line can have is refused before any line is read.
    msgspec.structs.replace(defaults, command=command or ("true",)).to_spec()
    reasons = frozenset(retry_on.split(","))
    if unknown := sorted(reasons - RETRIED):
        raise UsageError(
            f"--retry-on knows nothing of '{printable(unknown[0])}', only of "
            f"{', '.join(sorted(RETRIED))}"
        )
    options = Options(
        jobs=_jobs(jobs),
        defaults=defaults,
        retries=retries,
        retry_on=frozenset(map(Failure, reasons)),
        fail_fast=fail_fast,
        drain=drain,
        capture=None if capture is None else _capture(capture),
        keep=Keep.NONE if rm else Keep(keep or "all"),
        orphans=Orphans(orphans),
    )
    from craterun.linux.userns import become_root

    root = default_root()  # that of the real user: from here on, everybody is root
    if desk.current is not None and (options.capture or 0) * options.jobs > _MAX_LENT_BYTES:
        raise desk.DeclinedError
    source = _open(file)
    become_root()
    if rootfs not in (None, HOST_ROOTFS):
        from craterun.linux.rootfs import check_rootfs

        check_rootfs(rootfs)
    return _run(
        options,
        Ends(
            root=root,
            source=source,
            source_name="standard input" if file == "-" else printable(file),
            output=output,
            resume=resume,
            rerun_failed=rerun_failed,
            quiet=quiet,
        ),
    )


def _run(options: Options, ends: Ends) -> int:
    if desk.current is not None:
        return _run_by_server(desk.current, options, ends)
    from craterun.keeper.spawn import spawn_keeper

    # The keeper starts on the other core while this process imports trio.
    keeper = spawn_keeper()
    try:
        with uninterrupted():
            import trio

            from craterun.cli.batchrun import conduct, open_ledger
            from craterun.supervisor.link import KeeperLink
            from craterun.supervisor.main import Supervisor
        ledger = open_ledger(options, ends)
    except BaseException:
        keeper.close()
        raise
    return trio.run(
        conduct, options, ends, ledger, lambda: Supervisor(ends.root, link=KeeperLink(*keeper))
    )


def _run_by_server(counter: Desk, options: Options, ends: Ends) -> int:
    """All is done here, as ever, but for the containers, which the server looks after."""
    import trio

    from craterun.cli.batchrun import conduct, open_ledger
    from craterun.serve.borrowing import borrow

    ledger = open_ledger(options, ends)
    closing = trio.Event()

    def hosting() -> AbstractAsyncContextManager[Host]:
        return borrow(counter, ends.root, head_bytes=options.capture or 0, closing=closing)

    return trio.run(conduct, options, ends, ledger, hosting, closing)


def _open(file: str) -> int:
    """The input. What only the client itself can open or read is left to it.

    :raises OSError: it cannot be opened
    :raises DeclinedError: this is a worker of a server, and it is for the client to open
    """
    if file == "-":
        desk.leave_terminal_alone()
        return 0
    desk.leave_to_client(file)
    source = os.open(file, os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC)
    if stat.S_ISDIR(os.fstat(source).st_mode):
        raise UsageError(f"{printable(file)} is a directory, not a file of jobs")
    return source


def _jobs(asked: int | None) -> int:
    if asked is None:
        return len(os.sched_getaffinity(0))
    if asked < 1:
        raise UsageError(f"--jobs {asked} is too few: give 1 or more")
    require_files_for(asked, "--jobs")
    return asked


def _capture(text: str) -> int:
    if text.startswith("-"):
        raise UsageError(f"--capture {printable(text)} is negative")
    size = parse_bytes(text, "--capture")
    if size > _MAX_CAPTURE_BYTES:
        raise UsageError(
            f"--capture {text} is too much to be kept in memory: give "
            f"{format_bytes(_MAX_CAPTURE_BYTES)} or less, and see the logs for the rest"
        )
    return size
