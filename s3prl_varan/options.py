"""Typed options: a dataclass from the plain values of a config, every problem found at once.

A class says all that is to be known of a section: names, types, ranges, what must be given.

    @dataclass(frozen=True)
    class HeadOptions:
        kind: Literal["expert", "linear"] = "expert"
        dim: Count = 256
        dropout: Share = 0.0

Free of heavy imports, for the command line.
"""

import math
import types
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from typing import (
    Annotated,
    Any,
    Literal,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)  # fmt: skip

from s3prl_varan.errors import UserError, did_you_mean

T = TypeVar("T")


@dataclass(frozen=True)
class Range:
    """Bounds of a number; `above` and `below` are exclusive."""

    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None

    def __contains__(self, value: float) -> bool:
        return not (
            (self.low is not None and value < self.low)
            or (self.high is not None and value > self.high)
            or (self.above is not None and value <= self.above)
            or (self.below is not None and value >= self.below)
        )

    def __str__(self) -> str:
        words = {">=": self.low, "<=": self.high, ">": self.above, "<": self.below}
        return " and ".join(
            f"{sign} {bound:.10g}" for sign, bound in words.items() if bound is not None
        )


Count = Annotated[int, Range(low=1)]
Natural = Annotated[int, Range(low=0)]
Width = Annotated[int, Range(low=1, high=16384)]  # of a matrix: more is a slip, not a model
Seed = Annotated[int, Range(low=0, high=2**32 - 1)]  # numpy's
Positive = Annotated[float, Range(above=0)]
NonNegative = Annotated[float, Range(low=0)]
Share = Annotated[float, Range(low=0, below=1)]  # a dropout's probability, say
OpenShare = Annotated[float, Range(above=0, below=1)]


def read_options(
    cls: type[T], values: Any, section: str, problems: list[str], *, plain_only: bool = False
) -> T | None:
    """`values` of the config section `section` as an instance of the dataclass `cls`.

    What is missing, unknown, ill-typed or out of range goes into `problems`, a line each that
    names the key, what was expected and what was found; then the result is None.
    A class with keys of the user's naming has a classmethod `from_plain` of the same arguments,
    and `to_plain()`; it calls this with plain_only=True.
    """
    assert is_dataclass(cls)
    if not isinstance(values, Mapping):
        problems.append(f"{section}: expected keys and values, found {values!r}")
        return None
    custom = getattr(cls, "from_plain", None)
    if custom is not None and not plain_only:
        return custom(values, section, problems)
    before, hints = len(problems), get_type_hints(cls, include_extras=True)
    known = {each.name: each for each in fields(cls) if each.init}
    kwargs = {}
    for key, value in values.items():
        if key not in known:
            listed = ", ".join(known) or "none"
            hint = did_you_mean(key, known)
            problems.append(f"{section}.{key}: unknown key.{hint} Known: {listed}.")
            continue
        kwargs[key] = _read(value, hints[key], f"{section}.{key}", problems)
    for name, each in known.items():
        needed = each.default is MISSING and each.default_factory is MISSING
        if needed and name not in values:
            problems.append(f"{section}.{name}: missing, expected {readable(hints[name])}")
    if len(problems) > before:
        return None
    try:
        return cls(**kwargs)  # type: ignore[return-value]
    except UserError as error:  # what a class checks of several keys together
        problems.append(f"{section}: {error}")
        return None


def _read(value: Any, hint: Any, key: str, problems: list[str]) -> Any:
    """`value` as `hint` says, or None and a line in `problems`."""
    inner = _section_of(hint)
    if inner is not None and not (value is None and _takes_null(hint)):
        return read_options(inner, value, key, problems)
    try:
        return coerce(value, hint)
    except ValueError:
        choices = [each for each in _literals(hint) if isinstance(each, str)]
        guess = did_you_mean(value, choices) if isinstance(value, str) else ""
        problems.append(f"{key}: expected {readable(hint)}, found {value!r}.{guess}")
        return None


def coerce(value: Any, hint: Any) -> Any:
    """`value` as the type `hint` (int, float, bool, str, list, dict, Literal, Annotated, unions).

    Raises ValueError where it is none, is out of range, or is a number that is not finite.
    """
    origin = get_origin(hint)
    if hint is Any:
        return value
    if origin is Annotated:
        inner, *bounds = get_args(hint)
        value = coerce(value, inner)
        if value is not None and any(value not in bound for bound in bounds):
            raise ValueError
        return value
    if origin is Literal:
        if not any(value == each and type(value) is type(each) for each in get_args(hint)):
            raise ValueError
        return value
    if origin in (Union, types.UnionType):
        for option in get_args(hint):
            try:
                return coerce(value, option)
            except ValueError:
                continue
        raise ValueError
    return _coerce_plain(value, hint, origin)


def _coerce_plain(value: Any, hint: Any, origin: Any) -> Any:
    if origin in (list, tuple):
        if not isinstance(value, list | tuple):
            raise ValueError
        item = get_args(hint)[0]
        return origin(coerce(each, item) for each in value)
    if origin is dict:
        if not isinstance(value, dict):
            raise ValueError
        of_key, of_value = get_args(hint)
        return {coerce(key, of_key): coerce(each, of_value) for key, each in value.items()}
    if hint is types.NoneType and value is None:
        return None
    is_bool = isinstance(value, bool)
    if hint is float and isinstance(value, int | float) and not is_bool:
        if not math.isfinite(value):
            raise ValueError
        return value
    if isinstance(hint, type) and isinstance(value, hint) and (hint is bool or not is_bool):
        return value
    raise ValueError


def readable(hint: Any) -> str:
    """A type as a message names it: `int >= 1`, `one of fp32, bf16, fp16`, `str or null`."""
    origin = get_origin(hint)
    if origin is Annotated:
        inner, *bounds = get_args(hint)
        return " ".join([readable(inner), *map(str, bounds)])
    if origin is Literal:
        names = ", ".join("null" if each is None else str(each) for each in get_args(hint))
        return f"one of {names}"
    if origin in (Union, types.UnionType):
        return " or ".join(readable(each) for each in get_args(hint))
    if origin in (list, tuple):
        return f"a list of {readable(get_args(hint)[0])}"
    if origin is dict:
        return "keys and values"
    if hint is types.NoneType:
        return "null"
    return getattr(hint, "__name__", str(hint))


def plain(options: Any, *, plain_only: bool = False) -> dict[str, Any]:
    """An options object as plain values, defaults included, as a config would have them."""
    if hasattr(options, "to_plain") and not plain_only:
        return options.to_plain()
    return {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(options).items()}


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _section_of(hint: Any) -> type | None:
    """The dataclass among what a hint allows: such a value is a section of its own."""
    found = [each for each in _alternatives(hint) if isinstance(each, type) and is_dataclass(each)]
    return found[0] if found else None


def _takes_null(hint: Any) -> bool:
    return types.NoneType in _alternatives(hint)


def _literals(hint: Any) -> list[Any]:
    nested = [get_args(each) for each in _alternatives(hint) if get_origin(each) is Literal]
    return [value for values in nested for value in values]
