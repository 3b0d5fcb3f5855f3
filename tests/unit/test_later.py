"""What is imported for later is there as soon as it is used, and not before."""

from __future__ import annotations

import subprocess
import sys

import pytest


def check(code: str) -> None:
    """Run it, after trio was imported as commands import it."""
    before = (
        "import sys\n"
        "from craterun.cli.uninterrupted import uninterrupted\n"
        "finders = list(sys.meta_path)\n"
        "with uninterrupted():\n    import trio\n"
        "assert sys.meta_path == finders\n"
    )
    finished = subprocess.run(
        [sys.executable, "-c", before + code], capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr


def test_trio_does_not_execute_what_only_other_programs_need() -> None:
    check("assert not {'_ssl', '_hashlib'} & sys.modules.keys()")
    check("assert not {'tempfile', 'typing_extensions', 'idna.core'} & sys.modules.keys()")
    check("import ssl, hmac\nassert '_ssl' not in sys.modules, 'imported, and not used'")


@pytest.mark.parametrize(
    "use",
    [
        "import ssl; assert ssl.create_default_context().check_hostname",
        "from ssl import SSLContext; assert SSLContext.__module__ == 'ssl'",
        "from ssl import *; assert OP_ALL",
        "import hmac; assert hmac.new(b'k', b'm', 'sha256').hexdigest()",
        "from ipaddress import ip_address; assert ip_address('::1').is_loopback",
        "import trio; assert trio.SSLStream",
        "import ssl, importlib; ssl.OP_ALL; assert importlib.reload(ssl) is ssl",
        "import idna; assert idna.encode('ä.example') == b'xn--4ca.example'",
        "import typing_extensions; assert typing_extensions.TypedDict",
        "from ctypes.util import find_library as f; assert f('c') and not f('nothing-like-it')",
        "import msgspec, typing as t\nclass S(t.TypedDict):\n x: t.NotRequired[int]\n"
        "assert msgspec.convert({}, S) == {}",
        "import ssl, inspect; ssl.OP_ALL; assert inspect.getsource(ssl)",
    ],
)
def test_it_is_as_ever_when_it_is_used(use: str) -> None:
    check(use)
