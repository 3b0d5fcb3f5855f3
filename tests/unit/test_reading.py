"""What is read without cyclopts is what cyclopts would say."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib import import_module

import pytest
from cyclopts import CycloptsError
from cyclopts.argument import Argument
from hypothesis import given, settings
from hypothesis import strategies as st

from craterun.cli import parser, reading
from craterun.cli.app import COMMANDS
from craterun.cli.limits import LimitOptions

NAMES = sorted(COMMANDS)
Result = tuple[tuple[object, ...], dict[str, object]] | None


def function_of(name: str) -> Callable[..., object]:
    module, _, function = COMMANDS[name][0].partition(":")
    found = getattr(import_module(f"craterun.cli.{module}"), function)
    assert callable(found)
    return found  # type: ignore[no-any-return]


def arguments_of(name: str) -> list[Argument]:
    """What cyclopts knows of a command."""
    found = parser.app[name].assemble_argument_collection(
        default_parameter=parser.app.default_parameter
    )
    return [argument for argument in found if argument.parse]


def by_cyclopts(words: list[str]) -> Result:
    try:
        function, bound, _ = parser.app.parse_args(words)
    except CycloptsError:
        return None
    if function is not function_of(words[0]):
        return None  # its own: help, version
    return bound.args, bound.kwargs


def by_us(words: list[str]) -> Result:
    function = function_of(words[0])
    try:
        positional, named = reading.arranged(function, words[1:])
    except reading.UnclearError:
        return None
    bound = inspect.signature(function).bind(*positional, **named)
    return bound.args, bound.kwargs


def same(words: list[str]) -> bool:
    """Whether the two agree; whether we have read it."""
    ours = by_us(words)
    if ours is None:
        return False
    theirs = by_cyclopts(words)
    assert theirs is not None, f"{words}: cyclopts refuses it, and we read {ours}"
    assert repr(ours) == repr(theirs), words
    return True


ORDINARY = [
    ["ps"],
    ["ps", "-q"],
    ["ps", "--format", "json", "--running"],
    ["run", "--", "true"],
    ["run", "true"],
    ["run", "--rm", "true", "--", "false"],
    ["run", "--attach", "--", "sh", "-c", "a b", "--", "--help", "-x"],
    ["run", "-a", "-e", "A=1", "--env", "B=2", "--memory", "64m", "--cpus", "0.5", "--", "x"],
    ["run", "-it", "--rm", "--rootfs", "/srv/debian", "--", "sh"],
    ["run", "--timeout", "3", "--restart", "on-failure:2", "--", "-dash", ""],
    ["run", "--timeout=2.5", "--env=A=B=C", "--name=x", "--log-max-files", "2", "--", "x"],
    ["run", "--no-oom-group", "--memory-swap", "-1", "--oom-score-adj", "500", "--", "x"],
    ["run", "-d", "-m", "1g", "--io-max", "a rbps=1", "--io-max", "b rbps=2", "--", "x"],
    ["exec", "-it", "--user", "alice", "box", "--", "id", "-u"],
    ["exec", "box", "sh", "--", "id"],
    ["exec", "box", "id"],
    ["logs", "a"],
    ["logs", "--follow", "a", "b"],
    ["logs", "-ft", "-n", "3", "--stream", "stderr", "--since", "10m", "a"],
    ["inspect", "a", "b"],
    ["events", "--filter", "type=oom", "--filter", "id=a", "--json"],
    ["stats", "--no-stream", "--interval", "0"],
    ["top", "a"],
    ["wait", "a"],
    ["stop", "--time", "3", "a"],
    ["stop", "-t", "0.5", "-s", "INT", "a", "b"],
    ["kill", "-s", "TERM", "--", "a"],
    ["pause", "a"],
    ["unpause", "a"],
    ["update", "--memory", "64m", "a"],
    ["rm", "-f", "a", "b"],
    ["attach", "a", "--no-stdin"],
    ["info", "--format", "json"],
    ["batch", "-j", "4", "lines", "--", "echo"],
    ["serve"],
    ["shutdown", "--leave-running"],
    ["bench", "--count", "10", "--quiet"],
]
FOR_CYCLOPTS = [
    ["run", "--help"],
    ["run", "-h", "--", "x"],
    ["ps", "--version"],
    ["ps", "extra"],
    ["ps", "--format", "xml"],
    ["ps", "--format=JSON"],
    ["ps", "--nonsense"],
    ["ps", "--quiet=false"],
    ["ps", "-q", "--quiet"],
    ["run", "--name", "a", "--name", "b", "--", "x"],
    ["run", "--name"],
    ["run", "--name", "--", "x"],
    ["run", "--name", "--rm", "--", "x"],
    ["run", "--timeout", "soon", "--", "x"],
    ["run", "--timeout", "1e3", "--", "x"],
    ["run", "--log-max-files", "two", "--", "x"],
    ["run", "--env", '["A=1"]', "--", "x"],
    ["run", "-x", "--", "x"],
    ["exec"],
    ["exec", "--", "-x"],
    ["top"],
    ["top", "a", "b"],
]


@pytest.mark.parametrize("words", ORDINARY, ids=" ".join)
def test_ordinary_command_lines_are_read_as_cyclopts_reads_them(words: list[str]) -> None:
    assert same(words), "this is left to cyclopts, which takes its time"


@pytest.mark.parametrize("words", FOR_CYCLOPTS, ids=" ".join)
def test_what_is_not_plain_is_left_to_cyclopts(words: list[str]) -> None:
    same(words)
    if words != ["exec", "--", "-x"]:
        assert by_us(words) is None


def test_every_command_is_among_the_ordinary_ones() -> None:
    assert {words[0] for words in ORDINARY} == set(COMMANDS)


def choices(argument: Argument) -> tuple[str, ...]:
    """The values that there are, of an option that has so many."""
    return argument.get_choices() or ()


VALUES = ("3", "stdout", "", "1.5", "-1", "[1]")


@pytest.mark.parametrize("name", NAMES)
def test_every_name_that_cyclopts_knows_means_the_same_here(name: str) -> None:
    takes_more = any(argument.index is not None for argument in arguments_of(name))
    place = ["box"] if takes_more else []
    for argument in arguments_of(name):
        for option in argument.names:
            if not option.startswith("-"):
                continue
            values = (*VALUES, *choices(argument))
            lines = [[name, option, *place], *([name, option, v, *place] for v in values)]
            read = [same(line) for line in (*lines, [name, f"{option}=3", *place])]
            positional = argument.index is not None
            assert any(read) or positional, f"{name} {option}: no use of it is read"


@pytest.mark.parametrize("name", NAMES)
def test_no_name_is_known_here_that_cyclopts_does_not_know(name: str) -> None:
    arguments = [one for one in arguments_of(name) if one.index is None]
    theirs = {option for argument in arguments for option in argument.names if option != "*"}
    function = function_of(name)
    code = function.__code__
    own = code.co_varnames[code.co_argcount : code.co_argcount + code.co_kwonlyargcount]
    options = reading.Table({key: function.__annotations__[key] for key in own})
    ours = set(options.known)
    if options.limits is not None:
        ours |= set(reading.Table(LimitOptions.__annotations__).known)
    assert ours == theirs


WORDS = st.one_of(
    st.sampled_from(
        [
            "--", "-", "", "box", "a b", "--help", "-h", "--version", "-V", "-1", "3", "0.5", "1e3",
            ".5", "5.", "0x10", "1_000", "True", "no", "json", "JSON", "table", "text", "stdout",
            "[a]", "{}", "--no-quiet", "-qq", "-it", "-iti", "-ai", "-e=A", "-eA=1", "--env=",
            "--name=", "nan", "inf", "+3", " 3", "³", "--limits.memory", "--memory=1",
        ]
    ),
    st.text(max_size=4),
)  # fmt: skip


@st.composite
def lines(draw: st.DrawFn) -> list[str]:
    """A command with some of its own options, and other words."""
    name = draw(st.sampled_from(NAMES))
    own = sorted({o for argument in arguments_of(name) for o in argument.names if o[0] == "-"})
    option = st.sampled_from(own) if own else st.just("-x")
    values = st.sampled_from(["3", "0.5", "text", "json", "box", "-1", "-5", "a=b"])
    part = st.one_of(
        option.map(lambda one: [one]),
        st.tuples(option, values).map(list),
        st.tuples(option, values).map(lambda pair: ["=".join(pair)]),
        WORDS.map(lambda one: [one]),
    )
    parts = draw(st.lists(part, max_size=5))
    return [name, *(word for one in parts for word in one)]


@settings(max_examples=100, deadline=None)
@given(lines())
def test_whatever_is_read_is_what_cyclopts_says(words: list[str]) -> None:
    same(words)


def test_an_option_that_is_set_in_the_environment_is_left_to_cyclopts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert same(["run", "-it", "--", "sh"])
    monkeypatch.setenv("CRATERUN_DETACH_KEYS", "ctrl-p,ctrl-q")
    assert by_us(["run", "-it", "--", "sh"]) is None
    assert same(["ps"])
