"""Lines of a batch's input: however they arrive, and no more of them than are asked for."""

from __future__ import annotations

import trio
from hypothesis import given
from hypothesis import strategies as st

from craterun.batch.lines import Line, LineReader

NOTHING_MORE = "asked for more than was needed"


def read_all(chunks: list[bytes], limit: int = 1 << 20) -> tuple[list[Line], LineReader]:
    async def receive() -> bytes:
        await trio.lowlevel.checkpoint()
        return chunks.pop(0) if chunks else b""

    async def read() -> list[Line]:
        lines = []
        while (line := await reader.next()) is not None:
            lines.append(line)
        return lines

    reader = LineReader(receive, limit)
    return trio.run(read), reader


@given(st.binary(max_size=200).map(lambda data: data.replace(b"a", b"\n")), st.data())
def test_the_same_lines_come_however_the_bytes_arrive(content: bytes, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(content)), max_size=8)))
    chunks = [content[a:b] for a, b in zip([0, *cuts], [*cuts, len(content)], strict=True)]
    content = content.removeprefix(b"\xef\xbb\xbf")
    expected = [
        Line(number, line) for number, line in enumerate(content.split(b"\n"), 1) if line.strip()
    ]
    whole = sum(map(len, chunks))
    lines, reader = read_all([chunk for chunk in chunks if chunk])
    assert lines == expected
    assert reader.consumed == whole


def test_a_last_line_needs_no_end_and_empty_lines_are_only_counted() -> None:
    lines, _ = read_all([b"\xef\xbb\xbfa\r\n\n  \nb"])
    assert lines == [Line(1, b"a\r"), Line(4, b"b")]


@given(st.integers(1, 40))
def test_a_line_that_is_too_long_is_skipped_and_said(chunk_bytes: int) -> None:
    content = b"a\n" + b"x" * 100 + b"\nb\n" + b"y" * 11
    chunks = [content[i : i + chunk_bytes] for i in range(0, len(content), chunk_bytes)]
    lines, reader = read_all(chunks, limit=10)
    assert lines == [Line(1, b"a"), Line(2, None), Line(3, b"b"), Line(4, None)]
    assert reader.consumed == len(content)


def test_no_more_is_read_than_the_next_line_needs() -> None:
    async def receive() -> bytes:
        assert chunks, NOTHING_MORE
        return chunks.pop(0)

    async def read() -> None:
        assert [await reader.next(), await reader.next()] == [Line(1, b"a"), Line(2, b"b")]
        assert chunks == [b"d\n"]

    chunks = [b"a\nb", b"\nc", b"d\n"]
    reader = LineReader(receive)
    trio.run(read)
