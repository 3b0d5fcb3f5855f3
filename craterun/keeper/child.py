"""What the child does between clone3 and execve: carry out the plan, step by step.

The rules of this file: no imports at run time, no logging, no decisions that the plan could have
made. An error ends the child with one record on the error pipe (step number, errno, sometimes a few
bytes of evidence); the supervisor, which knows the plan, turns it into a sentence. End-of-file on
that pipe without a record means that execve succeeded, since the pipe is close-on-exec.

Everything here also holds for the children of `--init` and of exec, which fork once more.
"""

from __future__ import annotations

import _signal
import _socket
import os
import resource
import select
from fcntl import ioctl

from craterun.core import flags as f
from craterun.core import opcodes as op
from craterun.keeper.init import SIGNALS, be_init
from craterun.linux import calls

TYPE_CHECKING = False  # typing is an import that the keeper does without
if TYPE_CHECKING:
    from typing import Any

_NO_LINKS = f.RESOLVE_BENEATH | f.RESOLVE_NO_SYMLINKS | f.RESOLVE_NO_MAGICLINKS
_PATH = os.O_PATH | os.O_NOFOLLOW
_SIOCGIFFLAGS = 0x8913
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 1
_EVIDENCE_BYTES = 256
_ERROR_FD = 3
_EXIT_SETUP_FAILED = 125


class Child:
    """The state that steps share: descriptors by slot, and the streams of the process to be.

    :ivar stdin: read end of the input pipe, or -1 for the container's /dev/null
    :ivar error: write end of the error pipe
    :ivar pidfd: of the container to join, or -1
    :ivar open_files: RLIMIT_NOFILE as the keeper found it
    """

    __slots__ = ("error", "open_files", "pidfd", "slots", "stderr", "stdin", "stdout")

    def __init__(
        self,
        streams: tuple[int, int, int],
        error: int,
        pidfd: int,
        open_files: tuple[int, int],
    ) -> None:
        self.stdin, self.stdout, self.stderr = streams
        self.open_files = open_files
        self.error = error
        self.pidfd = pidfd
        self.slots = [-1] * op.SLOTS

    def run(self, steps: Any) -> None:
        """Carry out ``steps``, nested tuples as `core.steps` encodes them. Never returns."""
        number = 0
        try:
            os.umask(0)  # modes in the plan are meant as they stand
            for number, (opcode, *fields) in enumerate(steps):  # noqa: B007
                _STEPS[opcode](self, *fields)
            self.report(number, 0, b"xthe plan ends without executing anything")
        except OSError as error:
            # A wrapper of `linux.calls` names the call (str); a function of `os` names the path,
            # and `execute` sends evidence (bytes). The first byte tells which.
            name = error.filename
            evidence = b"p" + name if isinstance(name, bytes) else b"c" + str(name or "").encode()
            self.report(number, error.errno or 0, evidence)
        except BaseException as error:
            self.report(number, 0, b"x" + repr(error).encode())
        finally:
            os._exit(_EXIT_SETUP_FAILED)

    def report(self, step: int, errno: int, evidence: bytes) -> None:
        """One record, small enough (PIPE_BUF) to be written whole."""
        header = bytes((op.RECORD_ERROR, step & 255, step >> 8, errno & 255, errno >> 8))
        os.write(self.error, header + evidence[:4000])

    # --- process ------------------------------------------------------------------------------

    def setsid(self) -> None:
        os.setsid()

    def join_cgroup(self, path: bytes) -> None:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        os.write(fd, b"0")
        os.close(fd)

    def unshare(self, flags: int) -> None:
        calls.unshare(flags)

    def set_hostname(self, name: bytes) -> None:
        calls.sethostname(name)

    def loopback_up(self) -> None:
        kind = _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC
        sock = _socket.socket(_socket.AF_INET, kind, 0)
        request = ioctl(sock.fileno(), _SIOCGIFFLAGS, b"lo".ljust(40, b"\0"))
        flags = int.from_bytes(request[16:18], "little") | _IFF_UP
        raised = request[:16] + flags.to_bytes(2, "little") + bytes(22)
        ioctl(sock.fileno(), _SIOCSIFFLAGS, raised)
        sock.close()

    def session_keyring(self) -> None:
        try:
            calls.new_session_keyring()
        except OSError as error:
            if error.errno != 38:  # ENOSYS: no keyrings in this kernel, nothing to be reached
                raise

    def join_namespaces(self, flags: int) -> None:
        calls.setns(self.pidfd, flags)

    def fork_inside(self) -> None:
        # The keeper must be the parent, since it reaps: hence CLONE_PARENT. It learns the pid from
        # us, while the process cannot be reaped by anyone else yet, so the pid is not reused.
        pid, _ = calls.clone3(f.CLONE_PARENT, exit_signal=0)
        if pid:
            os.write(self.error, bytes((op.RECORD_PID,)) + pid.to_bytes(4, "little"))
            os._exit(0)

    # --- mounts -------------------------------------------------------------------------------

    def private_mounts(self) -> None:
        calls.mount_propagation(b"/", f.MS_REC | f.MS_PRIVATE)

    def clone_tree(
        self, slot: int, source: bytes, attributes: int, device: int, inode: int
    ) -> None:
        tree = calls.open_tree(f.AT_FDCWD, source, f.OPEN_TREE_CLONE | f.AT_RECURSIVE)
        if inode:
            found = os.fstat(tree)
            if (found.st_dev, found.st_ino) != (device, inode):
                raise OSError(116, "changed while the container was starting", "open_tree")
        if attributes:
            calls.mount_setattr(tree, f.AT_RECURSIVE, attributes)
        self.slots[slot] = tree

    def new_filesystem(self, slot: int, kind: bytes, options: Any, attributes: int) -> None:
        context = calls.fsopen(kind)
        calls.fsconfig(context, f.FSCONFIG_SET_STRING, b"source", kind)  # what mount(8) shows
        for key, value in options:
            if value:
                calls.fsconfig(context, f.FSCONFIG_SET_STRING, key, value)
            else:
                calls.fsconfig(context, f.FSCONFIG_SET_FLAG, key, None)
        calls.fsconfig(context, f.FSCONFIG_CMD_CREATE, None, None)
        self.slots[slot] = calls.fsmount(context, attributes)
        os.close(context)

    def enter_root(self) -> None:
        # On top of "/": it always exists, and path look-ups of this process still begin below it,
        # so that the host's files can be bound until pivot_root.
        root = self.slots[op.SLOT_ROOT]
        calls.move_mount(root, f.AT_FDCWD, b"/")
        os.fchdir(root)

    def park(self, slot: int) -> None:
        calls.move_mount(self.slots[slot], f.AT_FDCWD, b"/proc")

    def attach(self, slot: int, path: bytes, how: int, close: bool) -> None:
        self.attach_mount(self.slots[slot], path, how)
        if close:
            os.close(self.slots[slot])

    def attach_mount(self, mount: int, path: bytes, how: int) -> None:
        target = self.open_target(path, how)
        if target >= 0:
            calls.move_mount(mount, target, b"")
            os.close(target)

    def open_target(self, path: bytes, how: int) -> int:
        """An O_PATH descriptor of a mount target inside the root; -1 if it is to be skipped."""
        root = self.slots[op.SLOT_ROOT]
        if how == op.TARGET_FILE:
            return self.open_file_target(root, path)
        directory = os.O_DIRECTORY if how == op.TARGET_DIRECTORY else 0
        try:
            return calls.openat2(root, path, _PATH | directory, _NO_LINKS)
        except FileNotFoundError:
            if how == op.TARGET_EXISTING:
                return -1
        try:
            os.mkdir(path, 0o755, dir_fd=root)
        except FileExistsError:
            pass  # another container starts in the same rootfs
        return calls.openat2(root, path, _PATH | directory, _NO_LINKS)

    def open_file_target(self, root: int, path: bytes) -> int:
        # Symlinks are followed, as if the rootfs were "/": /etc/resolv.conf often is one. A target
        # that does not exist is made only if no symlink is involved (O_EXCL follows none at the
        # end); a rootfs that is read-only or has no /etc does without.
        inside = f.RESOLVE_IN_ROOT | f.RESOLVE_NO_MAGICLINKS
        try:
            target = calls.openat2(root, path, os.O_PATH, inside)
        except OSError:
            try:
                flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
                os.close(calls.openat2(root, path, flags, inside, 0o644))
            except OSError:
                pass  # made by another container meanwhile, or not possible: the next call tells
            try:
                return calls.openat2(root, path, os.O_PATH, inside)
            except OSError:
                return -1
        if os.fstat(target).st_mode & 0o170000 == 0o040000:
            raise OSError(21, "is a directory", path)
        return target

    def bind(self, slot: int, source: bytes, path: bytes, how: int, attributes: int) -> None:
        base = self.slots[slot] if slot >= 0 else f.AT_FDCWD
        flags = f.OPEN_TREE_CLONE | (f.AT_RECURSIVE if how == op.TARGET_DIRECTORY else 0)
        tree = calls.open_tree(base, source, flags)
        if attributes:
            recursive = f.AT_RECURSIVE if how == op.TARGET_DIRECTORY else 0
            calls.mount_setattr(tree, recursive, attributes)
        self.attach_mount(tree, path, how)
        os.close(tree)

    def remount_readonly(self, path: bytes) -> None:
        root = self.slots[op.SLOT_ROOT]
        target = self.open_target(path, op.TARGET_EXISTING)
        if target < 0:
            return
        tree = calls.open_tree(root, path, f.OPEN_TREE_CLONE | f.AT_RECURSIVE)
        calls.mount_setattr(tree, f.AT_RECURSIVE, f.MOUNT_ATTR_RDONLY)
        calls.move_mount(tree, target, b"")
        os.close(tree)
        os.close(target)

    def mask(self, path: bytes) -> None:
        target = self.open_target(path, op.TARGET_EXISTING)
        if target < 0:
            return
        if os.fstat(target).st_mode & 0o170000 == 0o040000:
            tree = calls.open_tree(self.slots[op.SLOT_FILES], b"empty", f.OPEN_TREE_CLONE)
            calls.mount_setattr(tree, 0, f.MOUNT_ATTR_RDONLY)
        else:
            tree = calls.open_tree(self.slots[op.SLOT_DEV], b"null", f.OPEN_TREE_CLONE)
        calls.move_mount(tree, target, b"")
        os.close(tree)
        os.close(target)

    def pivot_root(self) -> None:
        # Both on the same directory: the old root ends up on top of the new one, from where it is
        # detached, so that no directory for it is needed in the rootfs (pivot_root(2), NOTES).
        calls.pivot_root(b".", b".")
        calls.umount2(b".", f.MNT_DETACH)
        os.chdir(b"/")

    # --- files of our own filesystems -----------------------------------------------------------

    def make_directory(self, slot: int, path: bytes, mode: int) -> None:
        os.mkdir(path, mode, dir_fd=self.slots[slot])

    def make_file(self, slot: int, path: bytes, mode: int, content: bytes) -> None:
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(path, flags, mode, dir_fd=self.slots[slot])
        if content:
            os.write(fd, content)
        os.close(fd)

    def make_symlink(self, slot: int, path: bytes, to: bytes) -> None:
        os.symlink(to, path, dir_fd=self.slots[slot])

    def make_device(self, path: bytes, major: int, minor: int) -> None:
        mode = 0o020666  # S_IFCHR
        os.mknod(path, mode, os.makedev(major, minor), dir_fd=self.slots[op.SLOT_DEV])

    # --- last steps ---------------------------------------------------------------------------

    def stdio(self) -> None:
        # Every descriptor here was opened above 2, so no dup2 overwrites one that is still needed.
        stdin = self.stdin
        if stdin < 0:
            slot = self.slots[op.SLOT_DEV]
            stdin = self.container_null() if slot < 0 else self.own_null(slot)
        os.dup2(stdin, 0)
        os.dup2(self.stdout, 1)
        os.dup2(self.stderr, 2)

    def own_null(self, slot: int) -> int:
        return os.open(b"null", os.O_RDWR | os.O_CLOEXEC, dir_fd=slot)

    def container_null(self) -> int:
        """The /dev/null of a container that we joined, or, if that is no such thing, our own."""
        try:
            # Non-blocking, because the container may have put a FIFO there.
            flags = os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
            fd = os.open(b"/dev/null", flags)
        except OSError:
            return 0
        if os.fstat(fd).st_rdev != os.makedev(1, 3):
            return 0
        os.set_blocking(fd, True)
        return fd

    def close_descriptors(self) -> None:
        # Closing, not marking: while chdir runs, no descriptor may refer to anything of the host
        # (CVE-2024-21626). The error pipe alone stays, as descriptor 3, close-on-exec.
        if self.error != _ERROR_FD:
            os.dup2(self.error, _ERROR_FD, inheritable=False)
            self.error = _ERROR_FD
        calls.close_range(_ERROR_FD + 1)
        resource.setrlimit(resource.RLIMIT_NOFILE, self.open_files)

    def credentials(self, uid: int, gid: int, groups: Any, keep: int, last: int) -> None:
        for capability in range(last + 1):
            if not keep >> capability & 1:
                calls.prctl(f.PR_CAPBSET_DROP, capability)
        calls.prctl(f.PR_CAP_AMBIENT, f.PR_CAP_AMBIENT_CLEAR_ALL)
        if groups is not None:
            os.setgroups(groups)
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        calls.capset(keep if uid == 0 else 0)

    def change_directory(self, path: bytes) -> None:
        os.umask(0o022)
        os.chdir(path)
        # A directory outside of the root has no path from it; getcwd(3) says ENOENT then.
        if not os.getcwdb().startswith(b"/"):
            raise OSError(2, "outside the container", "getcwd")

    def die_with_keeper(self) -> None:
        # After the credentials: changing them clears the signal (prctl(2)). If the keeper died
        # before this call, the pipe has no reader any more, and writing nothing to it shows that.
        calls.prctl(f.PR_SET_PDEATHSIG, _signal.SIGKILL)
        if self.error_pipe_broken():
            os._exit(_EXIT_SETUP_FAILED)

    def error_pipe_broken(self) -> bool:
        poll = select.poll()
        poll.register(self.error, 0)  # POLLERR is always reported
        return bool(poll.poll(0))

    def execute(self, candidates: Any, arguments: Any, environment: Any) -> None:
        for number in (_signal.SIGPIPE, _signal.SIGXFSZ):  # CPython ignores these two
            _signal.signal(number, _signal.SIG_DFL)
        _signal.pthread_sigmask(_signal.SIG_SETMASK, ())
        argv, env = list(arguments), dict(environment)
        failed = b""
        refusal = OSError(2, "not found", "execve")
        for path in candidates:
            try:
                os.execve(path, argv, env)
            except OSError as error:
                # As execvp(3): go on looking, remember a refusal, stop at anything else. ENOENT for
                # a file that does exist means that its interpreter or loader is missing.
                exists = _exists(path)
                if error.errno in (2, 20) and not exists:
                    continue
                if not failed:
                    failed, refusal = path, error
                if error.errno != 13:
                    break
        evidence = failed + b"\0" + (_head(failed) if failed else b"")
        raise OSError(refusal.errno, "execve", evidence)

    def init(self) -> None:
        # Blocked signals are queued even for PID 1, which the kernel otherwise shields from those
        # that it has no handler for; sigwaitinfo then takes them one at a time.
        _signal.pthread_sigmask(_signal.SIG_BLOCK, SIGNALS)
        pid = os.fork()
        if pid:
            os.close(self.error)
            be_init(pid)


def _exists(path: bytes) -> bool:
    try:
        os.stat(path)
    except OSError as error:
        return error.errno not in (2, 20)
    return True


def _head(path: bytes) -> bytes:
    """The first bytes of a file that would not execute: they tell a script or an ELF file."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        return os.read(fd, _EVIDENCE_BYTES)
    except OSError:
        return b""


_STEPS: Any = {
    op.OP_SETSID: Child.setsid,
    op.OP_JOIN_CGROUP: Child.join_cgroup,
    op.OP_UNSHARE: Child.unshare,
    op.OP_PRIVATE_MOUNTS: Child.private_mounts,
    op.OP_CLONE_TREE: Child.clone_tree,
    op.OP_NEW_FILESYSTEM: Child.new_filesystem,
    op.OP_ENTER_ROOT: Child.enter_root,
    op.OP_ATTACH: Child.attach,
    op.OP_PARK: Child.park,
    op.OP_MAKE_DIRECTORY: Child.make_directory,
    op.OP_MAKE_FILE: Child.make_file,
    op.OP_MAKE_SYMLINK: Child.make_symlink,
    op.OP_MAKE_DEVICE: Child.make_device,
    op.OP_BIND: Child.bind,
    op.OP_REMOUNT_READONLY: Child.remount_readonly,
    op.OP_MASK: Child.mask,
    op.OP_PIVOT_ROOT: Child.pivot_root,
    op.OP_SET_HOSTNAME: Child.set_hostname,
    op.OP_LOOPBACK_UP: Child.loopback_up,
    op.OP_SESSION_KEYRING: Child.session_keyring,
    op.OP_STDIO: Child.stdio,
    op.OP_CREDENTIALS: Child.credentials,
    op.OP_CHANGE_DIRECTORY: Child.change_directory,
    op.OP_DIE_WITH_KEEPER: Child.die_with_keeper,
    op.OP_INIT: Child.init,
    op.OP_EXECUTE: Child.execute,
    op.OP_JOIN_NAMESPACES: Child.join_namespaces,
    op.OP_FORK_INSIDE: Child.fork_inside,
    op.OP_CLOSE_DESCRIPTORS: Child.close_descriptors,
}
