"""The figures of a benchmark: percentiles, tables and plots, without running anything."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from craterun.bench.peers import Bench, Limits, Podman, oci_config
from craterun.bench.plot import lines, page, plot, ticks
from craterun.bench.report import PHASES, Level, Percentiles, Report, nearest_rank, text
from craterun.core.phases import Phases

LATENCY = {name: Percentiles(10, 200, 3000) for name, _ in PHASES} | {
    "start": Percentiles(900, 1000, 1100),
    "total": Percentiles(1900, 2000, 2100),
}


def make_report(**changes: object) -> Report:
    report = Report(
        craterun="1.2.3",
        kernel="6.1.0",
        python="3.11.2",
        processors=2,
        state="/var/lib/craterun",
        filesystem="ext4",
        rootfs="host",
        command=("true",),
        limits={"memory": "64m"},
        count=200,
        rounds=3,
        levels=[
            Level(1, {"craterun": [100.0, 300.0, 200.0], "crun": [100.0]}, LATENCY),
            Level(4, {"craterun": [400.0]}, LATENCY),
        ],
        log_bytes_per_second={"craterun": [2.0**30], "cat": [2.0**29]},
        versions={"crun": "crun 1.8"},
        missing={},
        failed={},
    )
    return msgspec.structs.replace(report, **changes)


def test_every_phase_has_its_row_in_order() -> None:
    assert tuple(name for name, _ in PHASES) == Phases.__struct_fields__


@given(st.lists(st.floats(0, 1e9), min_size=1))
def test_percentiles_are_values_that_were_measured_and_ascend(values: list[float]) -> None:
    found = Percentiles.of(values)
    assert {found.p50, found.p90, found.p99} <= set(values)
    assert found.p50 <= found.p90 <= found.p99


def test_the_nearest_rank_is_not_exceeded_by_so_many() -> None:
    ordered = list(range(1, 101))
    assert [nearest_rank(ordered, percent) for percent in (50, 90, 99, 100)] == [50, 90, 99, 100]
    assert nearest_rank([7], 1) == nearest_rank([7], 99) == 7


def test_the_text_tells_medians_ratios_and_what_lacks() -> None:
    said = text(make_report())
    rows = [line.split() for line in said.splitlines()]
    assert ["1", "200", "100", "2.00"] in rows
    assert ["4", "400", "-", "-"] in rows
    assert ["craterun", "1024"] in rows
    assert "--memory 64m" in said
    assert "no limits" in text(make_report(limits={}))


def test_a_report_survives_json() -> None:
    report = make_report()
    assert msgspec.json.decode(msgspec.json.encode(report), type=Report) == report


@pytest.mark.parametrize("highest", [0.0, 0.3, 1.0, 7.0, 99.0, 421.0, 12345.0])
def test_ticks_are_few_and_reach_the_highest_value(highest: float) -> None:
    found = ticks(highest)
    assert found[0] == 0
    assert found[-1] >= highest * (1 - 1e-9)
    assert len(found) <= 7


def test_a_plot_is_well_formed_whatever_the_names_are() -> None:
    assert ElementTree.fromstring(plot(make_report())).tag.endswith("svg")
    hostile = page([lines("<&>", ["a", "b"], {"x<y": [1.0, None]}, '"label"')])
    root = ElementTree.fromstring(hostile)
    words = {element.text for element in root.iter() if element.tag.endswith("text")}
    assert {"<&>", "x<y", '"label"'} <= words


def test_a_peer_gets_the_same_limits_and_directories() -> None:
    bench = Bench(Path("/w"), "g", Limits(1 << 20, 10, 0.5), ("/bin/x", "y"), binds=("/usr",))
    config = msgspec.to_builtins(oci_config(bench, "n"))
    assert config["process"]["args"] == ["/bin/x", "y"]
    assert config["linux"]["resources"] == {
        "memory": {"limit": 1 << 20},
        "pids": {"limit": 10},
        "cpu": {"period": 100_000, "quota": 50_000},
    }
    usr = next(m for m in config["mounts"] if m["destination"] == "/usr")
    assert "ro" in usr["options"]


def test_podman_keeps_all_it_writes_in_directories_that_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By default its runtime's state is in /run/crun, and stays there if podman is interrupted."""
    said: list[list[str]] = []

    def noted(command: list[str], *_: object, **__: object) -> float:
        said.append(command)
        return 1.0

    monkeypatch.setattr("craterun.bench.peers.xargs", noted)
    bench = Bench(tmp_path, "g", root=Path("/nowhere"))
    Podman().seconds(bench, 1, 1)
    options = dict(zip(said[0], said[0][1:], strict=False))
    runroot = options["--runroot"]
    assert options["--root"].startswith(f"{tmp_path}/")
    assert options["--tmpdir"].startswith(f"{runroot}/")
    assert options["--runtime-flag"].startswith(f"root={runroot}/")
    assert not Path(runroot).exists()
