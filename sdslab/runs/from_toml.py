"""Frozen dataclasses from a file's tables: keys, types and bounds must be the dataclass's own.

A bound stands beside its field, as in ``size: Annotated[int, Between(1, 8192)]``, and holds
wherever the value comes from: a file, a saved configuration or the command line (`check_bounds`).
"""

import abc
import dataclasses
import tomllib
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, final

from sdslab.errors import UserError
from sdslab.shell.named_inputs import is_named_object

T = TypeVar("T")


class Bound(abc.ABC):
    """What must hold of a field's value beside its type."""

    @abc.abstractmethod
    def check(self, value: Any, where: str) -> None:
        """Raises `UserError`, which begins with ``where``, if the value is out of bounds."""


@final
@dataclass(frozen=True)
class Between(Bound):
    """A number from ``low`` to ``high``, both included."""

    low: float
    high: float

    def check(self, value: Any, where: str) -> None:
        if not self.low <= value <= self.high:
            raise UserError(f"{where} must be from {self.low} to {self.high}, got {value}")


@final
@dataclass(frozen=True)
class PowerOfTwo(Bound):
    """A power of two from ``low`` to ``high``."""

    low: int
    high: int

    def check(self, value: Any, where: str) -> None:
        if not self.low <= value <= self.high or value & (value - 1):
            raise UserError(
                f"{where} must be a power of two from {self.low} to {self.high}, got {value}"
            )


@final
@dataclass(frozen=True)
class Different(Bound):
    """Texts of which none comes twice; ``what`` they are is said in the message."""

    what: str

    def check(self, value: Any, where: str) -> None:
        if len(set(value)) < len(value):
            raise UserError(f"{where} must name different {self.what}, got {', '.join(value)}")


@final
@dataclass(frozen=True)
class Seeds(Bound):
    """Different whole numbers of at most ``bits`` bits."""

    bits: int

    def check(self, value: Any, where: str) -> None:
        if len(set(value)) < len(value) or min(value) < 0 or max(value) >= 2**self.bits:
            raise UserError(
                f"{where} must be different and within [0, 2^{self.bits}), got {list(value)}"
            )


@final
class OneOfOrOwn(Bound):
    """One of our names, or ``MODULE:NAME`` of the user's own."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def check(self, value: Any, where: str) -> None:
        if value not in self.names and not is_named_object(value):
            valid = ", ".join(self.names)
            raise UserError(f"{where} must be one of {valid}, or MODULE:NAME, got {value!r}")


def read_toml(path: Path) -> dict[str, Any]:
    """Parses a file.

    Raises:
        UserError: it is not there, or no TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    # Besides its own errors tomllib lets through those of long integers and of deep nesting.
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} must be a readable TOML file: {error}") from error


def as_table(value: Any, where: str) -> dict[str, Any]:
    """Returns ``value``, which must be a table."""
    if not isinstance(value, dict):
        raise UserError(f"{where} must be a table, got {value!r}")
    return value


def check_keys(table: dict[str, Any], valid: typing.Iterable[str], where: str) -> None:
    """Refuses keys that are not valid ones, which the message lists."""
    valid = list(valid)
    for key in table:
        if key not in valid:
            raise UserError(f"{where}: valid keys are {', '.join(valid)}; got {key!r}")


def build(cls: type[T], table: dict[str, Any], where: str) -> T:
    """Makes a dataclass from a table whose keys and value types must be the dataclass's own."""
    fields = {f.name: f for f in dataclasses.fields(cls)}  # pyright: ignore[reportArgumentType]
    check_keys(table, fields, where)
    for name, f in fields.items():
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if required and name not in table:
            raise UserError(f"{where}: {name!r} must be given, got {', '.join(table) or 'nothing'}")
    hints = typing.get_type_hints(cls, include_extras=True)
    values = {
        name: _checked(value, hints[name], f"{where}.{name}", fields[name].default == ())
        for name, value in table.items()
    }
    return cls(**values)


def check_bounds(settings: Any, name_of: Callable[[str], str]) -> None:
    """Checks the bounds of a dataclass that was changed after it was built.

    Args:
        settings: a dataclass's instance, its values of the right types.
        name_of: from a field's name to what the user knows it as, such as an option.

    Raises:
        UserError: a value is out of its bounds.
    """
    for name, hint in typing.get_type_hints(type(settings), include_extras=True).items():
        _check_bounds(getattr(settings, name), hint, name_of(name))


def _check_bounds(value: Any, hint: Any, where: str) -> None:
    for bound in getattr(hint, "__metadata__", ()):
        if isinstance(bound, Bound) and value is not None:
            bound.check(value, where)


def _checked(value: Any, hint: Any, where: str, may_be_empty: bool = False) -> Any:
    """Returns ``value`` as ``hint``, or refuses it."""
    if typing.get_origin(hint) is Annotated:
        value = _checked(value, typing.get_args(hint)[0], where, may_be_empty)
        _check_bounds(value, hint, where)
        return value
    if dataclasses.is_dataclass(hint):
        return build(typing.cast(type, hint), as_table(value, where), where)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    some = [argument for argument in arguments if argument is not type(None)]
    if origin in (types.UnionType, typing.Union) and len(some) == 1:
        return None if value is None else _checked(value, some[0], where)
    if origin is Literal:
        if value not in arguments or isinstance(value, bool):
            names = ", ".join(map(str, arguments))
            raise UserError(f"{where} must be one of {names}, got {value!r}")
        return value
    if origin is tuple:
        return _sequence(value, arguments, where, may_be_empty)
    if origin is dict:
        return {
            key: _checked(item, arguments[1], f"{where}.{key}")
            for key, item in as_table(value, where).items()
        }
    allowed = arguments or (hint,)
    if float in allowed and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
        names = " or ".join(kind.__name__ for kind in allowed if kind is not type(None))
        raise UserError(f"{where} must be {names}, got {value!r}")
    return value


def _sequence(
    value: Any, hints: tuple[Any, ...], where: str, may_be_empty: bool
) -> tuple[Any, ...]:
    """A list as a tuple; ``hints`` are of one item and an ellipsis, or of every item."""
    if not isinstance(value, list) or not (value or may_be_empty):
        raise UserError(f"{where} must be a list of at least one, got {value!r}")
    if hints[-1] is not Ellipsis and len(value) != len(hints):
        raise UserError(f"{where} must be a list of {len(hints)}, got {value!r}")
    return tuple(_checked(item, hints[0], where) for item in value)
