"""YAML's values as typed dataclasses: a key that is unknown or missing, or a value of another type, is one sentence."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from typing import Any

from evalengine.errors import UserError, nearest

LARGEST = 2**50  # of any number


def parse(kind: Any, value: Any, where: str) -> Any:
    """`value` as the dataclass or type `kind`; `where` is the path to it inside the file, for the error."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:
        one, other = args
        if other is type(None):
            return None if value is None else parse(one, value, where)
        return parse(other if isinstance(value, list) else one, value, where)  # str | tuple[str, ...]
    if dataclasses.is_dataclass(kind):
        return _parse_fields(kind, value, where)
    if origin is tuple:
        if not isinstance(value, list):
            raise UserError(f"{where} must be a list, not {value!r:.60}")
        return tuple(parse(args[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is not None:  # Mapping[str, X]
        if value == {}:
            raise UserError(f"{where} is empty: name at least one, as `name: value`")
        if not isinstance(value, dict):
            raise UserError(f"{where} must be a mapping of names, not {value!r:.60}")
        return {str(key): parse(args[1], item, f"{where}.{str(key)[:60]}") for key, item in value.items()}
    return _parse_scalar(kind, value, where)


def _parse_fields(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise UserError(f"{where} must be a mapping, not {value!r:.60}")
    hints = typing.get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}
    for key in value:
        if key not in fields:
            raise UserError(f"{where}: unknown key {key!r:.60}{nearest(str(key), fields)}")
    for name, item in fields.items():
        if name not in value and item.default is dataclasses.MISSING:
            raise UserError(f"{where}: the key {name!r} is missing")
    return kind(**{key: parse(hints[key], item, f"{where}: {key}") for key, item in value.items()})


def _parse_scalar(kind: Any, value: Any, where: str) -> Any:
    try:
        if kind is bool and isinstance(value, bool):
            return value
        if kind is str and isinstance(value, str | int | float) and not isinstance(value, bool):
            return str(value)
        if kind in (int, float) and not isinstance(value, bool):
            number = float(value)  # YAML reads 2e-5 as text
            if kind is int and not number.is_integer():
                raise ValueError
            if not math.isfinite(number) or abs(number) > LARGEST:
                raise ValueError
            return kind(number)
    except (TypeError, ValueError, OverflowError):
        pass
    expected = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[kind]
    raise UserError(f"{where} must be {expected}, not {value!r:.60}")
