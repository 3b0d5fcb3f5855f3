"""A line of a batch's input: what it means, and what is said of one that means nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from craterun.batch.job import Job, key_of, open_input, parse_job, read_env_files
from craterun.core.errors import UsageError
from craterun.core.limits import Limits


def job(defaults: Job | None = None, **asked: object) -> Job:
    return parse_job(json.dumps(asked).encode(), defaults or Job())


def test_a_line_overrides_the_defaults_of_the_batch() -> None:
    defaults = Job(command=("cat",), memory="64m", env={"A": "1", "B": "2"}, cpus="2", timeout=5)
    spec = job(defaults, memory="32m", env=["B=3"], cpu="max", key="k", stdin="x").to_spec()
    assert spec.command == ("cat",)
    assert spec.limits == Limits(memory=32 << 20, cpu_quota=-1, cpu_period=100000)
    assert spec.env == {"A": "1", "B": "3"}
    assert (spec.timeout, spec.interactive) == (5, True)
    assert not job(defaults).to_spec().interactive


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b"nonsense", "this is not JSON"),
        (b'{"command": ["true"]', "this is not JSON"),
        (b'{"key": "\xff"}', "this is n"),
        (b"[" * 100_000, "this is n"),
        (b"[]", "this is no job: Expected `object`"),
        (b'{"command": "true"}', "Expected `array`, got `str` - at `$.command`"),
        (b'{"commnad": ["true"]}', "unknown field `commnad`"),
        (b'{"memory": "64m"}', "there is no command"),
        (b'{"command": []}', "there is no command"),
        (b'{"command": ["true"], "memory": 64}', "--memory 64 is less than a page"),
        (b'{"command": ["true"], "stdin": "a", "stdin_file": "b"}', "exclude each other"),
        (b'{"command": ["a\\u0000b"]}', "contains a NUL character"),
    ],
)
def test_a_line_that_is_no_job_is_explained(line: bytes, complaint: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_job(line, Job()).to_spec()
    assert complaint in str(caught.value)
    assert str(caught.value).isprintable()


def test_the_key_of_a_bad_line_is_found_if_it_can_be() -> None:
    assert key_of(b'{"key": "k", "bogus": 1}') == "k"
    assert key_of(b'{"key": 7}') is None
    assert key_of(b'{"key": "k"') is None
    assert key_of(b"\xff") is None


def test_variables_come_from_regular_files_only(tmp_path: Path) -> None:
    path = tmp_path / "env"
    path.write_text("A=file\nB=file\n")
    assert read_env_files(job(env_file=str(path))) == {"A": "file", "B": "file"}
    assert read_env_files(job()) == {}
    with pytest.raises(UsageError, match="No such file"):
        read_env_files(job(env_file=[str(path), str(tmp_path / "x")]))
    with pytest.raises(UsageError, match="not a regular file"):
        read_env_files(job(env_file="/dev/zero"))
    with path.open("ab") as file:
        file.truncate(1 << 30)
    with pytest.raises(UsageError, match="larger than any environment"):
        read_env_files(job(env_file=str(path)))


def test_input_comes_from_regular_files_only(tmp_path: Path) -> None:
    assert open_input(job(command=["true"], stdin="text")) is None
    for name, complaint in ((tmp_path, "is not a regular file"), (tmp_path / "x", "No such file")):
        with pytest.raises(UsageError, match=complaint):
            open_input(job(command=["true"], stdin_file=str(name)))
    with pytest.raises(UsageError, match="embedded null byte"):
        open_input(job(command=["true"], stdin_file="a\0b"))
    (tmp_path / "x").write_bytes(b"content")
    file = open_input(job(command=["true"], stdin_file=str(tmp_path / "x")))
    assert file is not None
    file.close()


@pytest.mark.parametrize(
    ("text", "half"),
    [
        (rb"\ud800", r"\ud800"),
        (rb"\ud83d\ude00 \\ \uDC00", r"\uDC00"),
        (rb"\ud800\u0041", r"\ud800"),
        (rb"\\ud800", None),
        (rb"\ud83d\ude00", None),
    ],
)
def test_half_a_character_is_named(text: bytes, half: str | None) -> None:
    line = b'{"key": "' + text + b'"'
    with pytest.raises(UsageError, match="this is not JSON") as caught:
        parse_job(line + (b"}" if half else b""), Job())
    if half:
        assert str(caught.value) == (
            f"this is not JSON: {half} is half of a surrogate pair, and no character"
        )
    else:
        assert "half" not in str(caught.value)


def test_what_cannot_be_printed_is_escaped_once() -> None:
    job = parse_job(b'{"command": ["true"], "memory": "\\u0000"}', Job())
    with pytest.raises(UsageError) as caught:
        job.to_spec()
    assert str(caught.value).startswith(r"--memory '\x00' is not a size")
