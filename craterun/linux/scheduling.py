"""How soon a thread runs once it has something to do (sched(7))."""

from __future__ import annotations

import os
import struct

_NR_SCHED_SETATTR = {
    "x86_64": 314, "aarch64": 274, "riscv64": 274, "ppc64le": 355, "s390x": 345,
}.get(os.uname().machine, -1)  # fmt: skip
_ATTRIBUTES = struct.Struct("IIQiIQQQII")  # struct sched_attr
_KEEP_POLICY = 0x08
SHORTEST_SLICE_NS = 100_000

FEW_BYTES = 1024
"""After less output than that, its writer lets others on this processor run who were woken by it
(sched_yield(2)). For them, what is left to be done for this chunk would be time to wait. Of a
flood, the more at a time the better."""


def prefer_short_slices() -> None:
    """Have the calling thread run for a tenth of a millisecond at a time: sched_setattr(2).

    It gets no more of the processor than before. But who asks for less at a time gets it earlier,
    so that a thread with the usual slice makes room at once when this one wakes up (EEVDF, Linux
    6.12; of no effect before that, nor in another scheduling class, nor where the kernel or a
    security module does not want that).
    """
    from craterun.linux import calls  # imports ctypes, which whoever needs a number does without

    nice = os.getpriority(os.PRIO_PROCESS, 0)
    size = _ATTRIBUTES.size
    attributes = _ATTRIBUTES.pack(size, 0, _KEEP_POLICY, nice, 0, SHORTEST_SLICE_NS, 0, 0, 0, 0)
    calls.plain_function("syscall")(_NR_SCHED_SETATTR, 0, attributes, 0)
