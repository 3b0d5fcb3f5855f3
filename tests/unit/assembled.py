"""Machine code as its source says it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from tests.conftest import tier_not_run


def assembled(source: Path, scratch: Path) -> bytes:
    """The bytes of ``source``. Says so loudly if there is no assembler here."""
    if shutil.which("as") is None or shutil.which("objcopy") is None:
        tier_not_run("binutils are missing: machine code is not compared with its source")
    made, code = scratch / "code.o", scratch / "code.bin"
    subprocess.run(["as", "--64", "-o", made, source], check=True)
    subprocess.run(["objcopy", "-O", "binary", "-j", ".text", made, code], check=True)
    return code.read_bytes()
