"""No import points to the right, and nobody pays for what they do not use."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "craterun"
MODULES = sorted(PACKAGE.rglob("*.py"))

MAY_IMPORT = {
    "core": {"core"},
    "linux": {"core", "linux"},
    "state": {"core", "state"},
    "keeper": {"core", "linux", "keeper"},
    "supervisor": {"core", "linux", "state", "keeper", "supervisor"},
    "client": {"core", "linux", "state", "keeper", "supervisor", "client"},
    "bench": {"core", "linux", "state", "keeper", "supervisor", "client", "bench"},
    "batch": {"core", "linux", "state", "keeper", "supervisor", "client", "batch"},
    "serve": {"core", "linux", "state", "keeper", "supervisor", "client", "serve"},
    "cli": {
        "core",
        "linux",
        "state",
        "keeper",
        "supervisor",
        "client",
        "bench",
        "batch",
        "serve",
        "cli",
    },
}
HEAVY_FOR_A_KEEPER = {
    "msgspec", "enum", "re", "typing_extensions", "trio", "anyio", "asyncio", "logging",
    "cyclopts", "subprocess", "socket", "signal", "typing", "threading",
}  # fmt: skip


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports: anywhere in it, for type checkers only or not."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import hides where it leads"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def layer(path: Path) -> str | None:
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else None


LAYERED = [path for path in MODULES if layer(path) is not None]


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", LAYERED, ids=relative)
def test_no_import_points_to_the_right(path: Path) -> None:
    mine = layer(path)
    assert mine in MAY_IMPORT, "a new layer: where does it stand?"
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "craterun" and len(parts) > 1 and (PACKAGE / parts[1]).is_dir():
            assert parts[1] in MAY_IMPORT[mine], f"{relative(path)} imports {name}"


def test_the_walk_sees_what_there_is_to_see() -> None:
    found = {layer(path) for path in LAYERED}
    assert found == set(MAY_IMPORT)
    crossing = {
        (layer(path), name.split(".")[1])
        for path in LAYERED
        for name in imports(path)
        if name.startswith("craterun.")
    }
    assert {("keeper", "linux"), ("supervisor", "keeper"), ("cli", "supervisor")} <= crossing


@pytest.mark.parametrize(
    "path", [path for path in LAYERED if layer(path) == "keeper"], ids=relative
)
def test_the_keeper_names_no_module_that_would_make_it_heavy(path: Path) -> None:
    roots = {name.split(".")[0] for name in imports(path)}
    assert not roots & {"trio", "anyio", "msgspec", "cyclopts", "enum"}


@pytest.mark.parametrize(
    "path", [p for p in LAYERED if layer(p) in ("core", "linux", "state")], ids=relative
)
def test_the_lower_layers_know_no_event_loop_and_no_command_line(path: Path) -> None:
    roots = {name.split(".")[0] for name in imports(path)}
    assert not roots & {"trio", "anyio", "asyncio", "cyclopts", "subprocess"}


def loaded(code: str, *options: str) -> set[str]:
    """What sys.modules holds at the end of ``code``, in an interpreter of its own."""
    last = "\nprint(); print(*sorted(sys.modules))"
    result = subprocess.run(
        [sys.executable, *options, "-c", f"import sys\n{code}{last}"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
        cwd="/",
    )
    return set(result.stdout.splitlines()[-1].split())


def test_a_keeper_imports_nothing_that_every_clone_would_have_to_copy() -> None:
    code = f"sys.path.insert(0, {str(ROOT)!r}); import craterun.keeper.main"
    modules = loaded(code, "-S")
    assert {"craterun.keeper.main", "craterun.keeper.child", "craterun.linux.calls"} <= modules
    assert not modules & HEAVY_FOR_A_KEEPER


def test_commands_that_only_look_start_no_event_loop() -> None:
    commands = ("listing", "manage", "stats", "top")
    code = f"sys.path.insert(0, {str(ROOT)!r})\nimport " + ", ".join(
        f"craterun.cli.{name}" for name in commands
    )
    modules = loaded(code)
    assert "craterun.client.local" in modules
    assert not modules & {"trio", "asyncio", "craterun.keeper.spawn", "craterun.supervisor.main"}


def test_importing_the_package_imports_nothing_else() -> None:
    modules = loaded(f"sys.path.insert(0, {str(ROOT)!r}); import craterun", "-S")
    assert {name for name in modules if name.startswith("craterun")} == {"craterun"}
    assert not modules & HEAVY_FOR_A_KEEPER


def test_every_public_name_can_be_had() -> None:
    import craterun

    for name in craterun.__all__:
        assert getattr(craterun, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = craterun.no_such_name


def test_a_container_without_limits_does_not_wait_for_what_limits_need() -> None:
    code = (
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "import craterun.cli.run, craterun.supervisor.main\n"
        "from craterun.core.cgroups import plan_cgroups\n"
        "from craterun.core.spec import Hierarchy, HostFacts\n"
        "plan_cgroups('x', HostFacts(kernel=(6, 1), hierarchies=(Hierarchy(2, ('pids',), '/x'),)))"
    )
    modules = loaded(code)
    assert "craterun.core.limits" in modules
    assert not modules & {
        "craterun.core.limit_files", "craterun.linux.limits", "craterun.linux.features",
    }  # fmt: skip
