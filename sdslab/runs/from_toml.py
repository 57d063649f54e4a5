"""Frozen dataclasses from a file's tables: all keys and types must be the dataclass's own."""

import dataclasses
import types
import typing
from typing import Any, Literal, TypeVar

from sdslab.errors import UserError

T = TypeVar("T")


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
    hints = typing.get_type_hints(cls)
    values = {
        name: _checked(value, hints[name], f"{where}.{name}", fields[name].default == ())
        for name, value in table.items()
    }
    return cls(**values)


def _checked(value: Any, hint: Any, where: str, may_be_empty: bool = False) -> Any:
    """Returns ``value`` as ``hint``, or refuses it."""
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
