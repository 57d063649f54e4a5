"""A command line to a dataclass: mistakes are one line in our words, the rest is tyro's."""

import dataclasses
import difflib
import inspect
import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import tyro

from sdslab.errors import UserError, one_line

T = TypeVar("T")
_KINDS = {int: "a whole number", float: "a number"}


@dataclass(frozen=True)
class Option:
    """What an option takes.

    Attributes:
        names: with their dashes; of a positional argument, its metavar.
        kind: int, float, str or another type that takes any text; bool is a flag.
        choices: that are allowed; all, where it is empty.
        count: of values; None is any number.
        positional: whether it is given without its name.
    """

    names: tuple[str, ...]
    kind: type[Any]
    choices: tuple[Any, ...]
    count: int | None
    positional: bool


def parse(cls: type[T], prog: str, arguments: Sequence[str], default: T | None = None) -> T:
    """Reads a command line; ``--help`` prints and exits.

    Args:
        cls: a dataclass, whose docstring is the description; it may hold others.
        prog: the program, for the help.
        arguments: without the program.
        default: in place of the dataclass's own defaults.

    Raises:
        UserError: an option is unknown, or a value is not what it takes.
    """
    check_options(cls, arguments, prog)
    return tyro.cli(
        cls,
        prog=prog,
        args=list(arguments),
        description=inspect.getdoc(cls),  # whole: tyro would leave the examples out
        default=tyro.MISSING_NONPROP if default is None else default,
        config=(tyro.conf.FlagCreatePairsOff,),
    )


def check_options(cls: type[Any], arguments: Sequence[str], prog: str) -> None:
    """Refuses unknown options and values of another type; `parse` does it before tyro.

    Raises:
        UserError: says what must hold, and what may be meant.
    """
    options = list(options_of(cls))
    by_name = {name: option for option in options for name in option.names}
    places = [option for option in options if option.positional]
    room = None if any(o.count is None for o in places) else sum(o.count or 0 for o in places)
    rest, positional, only_places = list(arguments), 0, False
    while rest:
        token = rest.pop(0)
        if token == "--" and not only_places:  # before names that begin with a dash
            only_places = True
            continue
        if token in ("-h", "--help") and not only_places:
            return
        if only_places or not token.startswith("-") or _is_number(token):
            positional += 1
            if room is not None and positional > room:
                raise UserError(
                    f"nothing takes {one_line(token)!r}: it follows no option; put quotes around a "
                    f"text of several words ({prog} --help lists the options)"
                )
            continue
        name, equals, value = token.partition("=")
        option = by_name.get("--" + name.removeprefix("--").replace("_", "-"))
        if option is None or not name.startswith("--"):
            bare = {known.removeprefix("--"): known for o in options for known in o.names}
            near = difflib.get_close_matches(name.strip("-"), bare, 1, 0.5)
            meant = f"did you mean {bare[near[0]]}?" if near else f"{prog} --help lists them"
            raise UserError(f"{one_line(name)} is no option; {meant}")
        if option.kind is not bool:
            _check_values(name, option, [value] if equals else [], rest)


def options_of(cls: type[Any]) -> Iterator[Option]:
    """The options of a dataclass and of those in it."""
    hints = typing.get_type_hints(cls, include_extras=True)
    for field in dataclasses.fields(cls):
        hint, extras = _bare(hints[field.name])
        if dataclasses.is_dataclass(hint):
            yield from options_of(typing.cast(type, hint))
            continue
        configured = [extra for extra in extras if hasattr(extra, "aliases")]
        aliases = tuple(name for extra in configured for name in extra.aliases or ())
        names = (f"--{field.name.replace('_', '-')}", *aliases)
        positional = any("POSITIONAL" in str(extra).upper() for extra in extras)
        appended = any("APPEND" in str(extra).upper() for extra in extras)
        kind, choices, count = _values(hint)
        if appended:
            count = 1
        yield Option(() if positional else names, kind, choices, count, positional)


def _bare(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """A type without its annotations and without None, and the annotations."""
    extras: tuple[Any, ...] = ()
    while typing.get_origin(hint) is typing.Annotated:
        hint, *more = typing.get_args(hint)
        extras += tuple(more)
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        some = [part for part in typing.get_args(hint) if part is not types.NoneType]
        hint, more = _bare(some[0])
        extras += more
    return hint, extras


def _values(hint: Any) -> tuple[type[Any], tuple[Any, ...], int | None]:
    """The type of each value, its choices, and the number of values."""
    if typing.get_origin(hint) is tuple:
        parts = typing.get_args(hint)
        kind, choices, _ = _values(_bare(parts[0])[0])
        return kind, choices, None if parts[-1] is Ellipsis else len(parts)
    if typing.get_origin(hint) is Literal:
        choices = typing.get_args(hint)
        return type(choices[0]), choices, 1
    return hint, (), 1


def _check_values(name: str, option: Option, values: list[str], rest: list[str]) -> None:
    """Takes the option's values from ``rest`` and checks each."""
    while rest and (option.count is None or len(values) < option.count):
        if rest[0].startswith("-") and not _is_number(rest[0]) and len(rest[0]) > 1:
            break
        values.append(rest.pop(0))
    needed = 1 if option.count is None else option.count
    if len(values) < needed:
        what = "a value" if needed == 1 else f"{needed} values"
        raise UserError(f"{name} must be followed by {what}, got {len(values) or 'none'}")
    for value in values:
        if option.choices:
            known = [str(choice) for choice in option.choices]
            if value not in known:
                near = difflib.get_close_matches(value.lower(), known, 1)
                meant = f"; did you mean {near[0]}?" if near else ""
                raise UserError(
                    f"{name} must be one of {', '.join(known)}, got {one_line(value)!r}{meant}"
                )
        elif option.kind in _KINDS:
            try:
                option.kind(value)
            except ValueError:
                raise UserError(
                    f"{name} must be {_KINDS[option.kind]}, got {one_line(value)!r}"
                ) from None


def _is_number(token: str) -> bool:
    try:
        float(token)
    except ValueError:
        return False
    return True
