"""Read ordinary command lines: what cyclopts would make of them, without importing it.

The signatures of the commands say what there is, as they do to cyclopts; nothing is told twice.
Their annotations are texts, which are evaluated here with light stand-ins for the names in
`cli.typed`. Whatever is not plain (help, mistakes, spellings that people seldom use, an option that
is given twice) is not read at all: cyclopts is asked, and has its own words for it. What is read
here must be exactly what cyclopts says, which the tests compare.
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing is an import that most commands do without
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import CodeType
    from typing import Any

_VARIABLE = 0x04
"""CO_VARARGS of code.co_flags: the last parameter takes all that follows."""
_VARIABLE_NAMED = 0x08
_MANY_DIGITS = 18


class UnclearError(Exception):
    """Not for us to say what this means."""


class _Choice(tuple[object, ...]):
    """Stands for Literal: the values."""

    __slots__ = ()

    def __or__(self, other: object) -> _Choice:
        if other is not None:
            raise UnclearError
        return self


class _Limits:
    """Stands for LimitOptions."""

    def __or__(self, other: object) -> _Limits:
        if other is not None:
            raise UnclearError
        return self


class _Described(tuple[object, dict[str, object]]):
    """Stands for Annotated: the type, and the arguments of its Parameter."""

    __slots__ = ()


class _ChoiceOf:
    def __getitem__(self, values: object) -> _Choice:
        return _Choice(values if isinstance(values, tuple) else (values,))


class _DescribedAs:
    def __getitem__(self, parts: tuple[object, dict[str, object]]) -> _Described:
        return _Described(parts)


class _Typed:
    """Stands for the module `cli.typed`."""

    Annotated = _DescribedAs()
    Literal = _ChoiceOf()
    LimitOptions = _Limits()

    @staticmethod
    def Parameter(**details: object) -> dict[str, object]:  # noqa: N802
        """What was said, as it is."""
        return details


_NAMES = {"typed": _Typed, "str": str, "int": int, "float": float, "bool": bool, "list": list}
_UNDERSTOOD = {"name", "negative", "env_var", "allow_leading_hyphen", "show_default"}


class _Option:
    """One option, under each of its names.

    :ivar key: the parameter's name
    :ivar kind: the type of its value, without None
    :ivar constant: of a flag: what its name alone means; None if a value follows
    :ivar hyphen: whether that value may begin with a hyphen
    """

    __slots__ = ("constant", "hyphen", "key", "kind")

    def __init__(self, key: str, kind: object, constant: bool | None, hyphen: bool) -> None:
        self.key = key
        self.kind = kind
        self.constant = constant
        self.hyphen = hyphen


class Table:
    """Options by name. Made once by a process that reads many command lines, and inherited by its
    forks, as a server's workers are.

    :ivar limits: the key of the option that stands for all limits
    :ivar variables: environment variables that set an option
    """

    def __init__(self, annotations: Mapping[str, str]) -> None:
        self.known: dict[str, _Option] = {}
        self.limits: str | None = None
        self.variables: list[str] = []
        for key, annotation in annotations.items():
            self._add(key, _evaluated(annotation))

    def _add(self, key: str, kind: object) -> None:
        details: dict[str, object] = {}
        if isinstance(kind, _Described):
            kind, details = kind
        if isinstance(kind, _Limits):
            self.limits = key
            return
        if not details.keys() <= _UNDERSTOOD:
            raise UnclearError
        self.variables += _texts(details.get("env_var"))
        kind = _without_none(kind)
        names = _texts(details.get("name")) or [f"--{key.replace('_', '-')}"]
        constant = True if kind is bool else None
        hyphen = details.get("allow_leading_hyphen") is True
        for name in names:
            self.known[name] = _Option(key, kind, constant, hyphen)
        for name in _texts(details.get("negative")):
            self.known[name] = _Option(key, kind, False, hyphen)


class Options:
    """What was given of the options in a table.

    :raises UnclearError: some of it by the environment
    """

    def __init__(self, table: Table) -> None:
        self.given: dict[str, object] = {}
        self.limits = table.limits
        self._known = table.known
        if table.variables and _is_any_set(table.variables):
            raise UnclearError

    def find(self, name: str) -> _Option | None:
        """The option of this name."""
        return self._known.get(name)

    def give(self, option: _Option, text: str | None) -> None:
        """Take a value; None: it is a flag.

        :raises UnclearError: it is not plain
        """
        if (text is None) != (option.constant is not None):
            raise UnclearError
        value: object = option.constant if text is None else _value(option.kind, text)
        if option.kind == list[str]:
            earlier = self.given.setdefault(option.key, [])
            assert isinstance(earlier, list)
            earlier.append(value)
        elif option.key in self.given:
            raise UnclearError
        else:
            self.given[option.key] = value


_tables: dict[object, Table] = {}


def read(
    arguments: list[str], commands: Mapping[str, tuple[str, str]]
) -> Callable[[], object] | None:
    """What a command line calls; None if that is for cyclopts to say.

    :param commands: where each command is to be found, and its help
    """
    if not arguments or arguments[0] not in commands:
        return None
    module, _, name = commands[arguments[0]][0].partition(":")
    # importlib.import_module is one import more.
    function = getattr(__import__(f"craterun.cli.{module}", fromlist=(name,)), name)
    try:
        positional, named = arranged(function, arguments[1:])
    except UnclearError:
        return None
    return lambda: function(*positional, **named)


def arranged(
    function: Callable[..., object], words: list[str]
) -> tuple[list[str], dict[str, object]]:
    """Arguments for ``function``.

    :raises UnclearError: these words are not plain
    """
    code: CodeType = function.__code__
    annotations: dict[str, str] = function.__annotations__
    end = code.co_argcount + code.co_kwonlyargcount
    parameters, options = (
        code.co_varnames[: code.co_argcount],
        code.co_varnames[code.co_argcount : end],
    )
    variable = code.co_varnames[end] if code.co_flags & _VARIABLE else None
    if code.co_flags & _VARIABLE_NAMED or function.__defaults__:
        raise UnclearError
    if (table := _tables.get(function)) is None:
        table = _tables[function] = Table({name: annotations[name] for name in options})
    own = Options(table)
    limits: Options | None = None
    positional: list[str] = []
    rest: list[str] | None = None
    position = 0
    while position < len(words):
        word = words[position]
        position += 1
        if word == "--":
            rest = words[position:]
            break
        if word == "-":
            raise UnclearError
        if not word.startswith("-"):
            positional.append(word)
            continue
        name, equals, text = word.partition("=")
        holder, option = own, own.find(name)
        if option is None and own.limits is not None:
            limits = limits or Options(_limit_table())
            holder, option = limits, limits.find(name)
        if option is None:
            if equals or word.startswith("--"):
                raise UnclearError
            _give_flags(own, word)
        elif equals or option.constant is not None:
            holder.give(option, text if equals else None)
        elif position == len(words):
            raise UnclearError
        else:
            text = words[position]
            position += 1
            if text == "--" or (text.startswith("-") and not option.hyphen):
                raise UnclearError
            holder.give(option, text)
    positional += rest or []
    if len(positional) < len(parameters) or (len(positional) > len(parameters) and not variable):
        raise UnclearError
    for name in (*parameters, *([variable] if variable else [])):
        kind = _evaluated(annotations[name])
        if (kind[0] if isinstance(kind, _Described) else kind) is not str:
            raise UnclearError
    if limits is not None and limits.given:
        from craterun.cli.limits import LimitOptions

        assert own.limits is not None
        own.given[own.limits] = LimitOptions(**limits.given)  # type: ignore[arg-type]
    return positional, own.given


def _limit_table() -> Table:
    from craterun.cli.limits import LimitOptions

    if (table := _tables.get(LimitOptions)) is None:
        table = _tables[LimitOptions] = Table(LimitOptions.__annotations__)
    return table


def _give_flags(options: Options, word: str) -> None:
    """``-it``: several flags of one letter each."""
    for letter in word[1:]:
        option = options.find(f"-{letter}")
        if option is None or len(word) < 3:
            raise UnclearError
        options.give(option, None)


def _value(kind: object, text: str) -> object:
    if kind is str or (kind == list[str] and text[:1] not in ("[", "{")):
        return text
    if isinstance(kind, _Choice) and text in kind:
        return text
    digits = text.isascii() and len(text) <= _MANY_DIGITS
    if kind is int and digits and text.isdigit():
        return int(text)
    if kind is float and digits and text.replace(".", "", 1).isdigit():
        return float(text)
    raise UnclearError


def _evaluated(annotation: str) -> Any:
    try:
        return eval(annotation, {"__builtins__": {}}, _NAMES)  # noqa: S307  # written in this package
    except NameError:
        raise UnclearError from None


def _without_none(kind: object) -> object:
    for plain in (str, int, float, bool, list[str]):
        if kind == plain | None:
            return plain
    return kind


def _texts(names: object) -> list[str]:
    if isinstance(names, str):
        return [names]
    return list(names) if isinstance(names, (list, tuple)) else []


def _is_any_set(variables: list[str]) -> bool:
    import os

    return any(variable in os.environ for variable in variables)
