"""One setting: its default, its rule, its meaning, and the check of a value. No jax."""

import contextlib
import dataclasses
import math
import numbers
from collections.abc import Callable
from typing import Any, ClassVar

from gpt_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Rule:
    """What a value must satisfy: in words, and as a test."""

    text: str
    holds: Callable[[Any], bool]


MAX_INT = 2**31 - 1  # JAX counts and indexes with 32 bits.

ANY = Rule("any value", lambda value: True)
FILLED = Rule("not empty", lambda text: text != "")
POSITIVE = Rule("above 0", lambda x: x > 0)
NOT_NEGATIVE = Rule("0 or more", lambda x: x >= 0)
BELOW_ONE = Rule("in [0, 1)", lambda x: 0 <= x < 1)
INSIDE_ONE = Rule("in (0, 1)", lambda x: 0 < x < 1)
UP_TO_ONE = Rule("in (0, 1]", lambda x: 0 < x <= 1)
UP_TO_16 = Rule("0 to 16", lambda x: 0 <= x <= 16)
UP_TO_256 = Rule("1 to 256", lambda x: 1 <= x <= 256)
UP_TO_1000 = Rule("0 to 1000", lambda x: 0 <= x <= 1000)
ABOVE_ZERO_TO_1000 = Rule("0.001 to 1000", lambda x: 0.001 <= x <= 1000)
UP_TO_1024 = Rule("0 to 1024", lambda x: 0 <= x <= 1024)
INT32 = Rule("0 to 2**31 - 1", lambda x: 0 <= x <= MAX_INT)
TOKENIZER = Rule("char, byte, bpe, or a path to a tokenizer.json or its folder", FILLED.holds)
# The tokenizer's trainer reserves memory for the size at once: 1 GB for 2**24.
BPE_SIZE = Rule("257 (the bytes and the end-of-text token) to 2**24", lambda x: 257 <= x <= 2**24)
GROUP = Rule("2 or more: answers are compared within their group", lambda x: x >= 2)
REST_OR_POSITIVE = Rule("above 0, or -1 for the rest", lambda x: x > 0 or x == -1)


def one_of(*words: str) -> Rule:
    """The rule that a value is one of `words`."""
    return Rule("one of " + ", ".join(words), lambda word: word in words)


# Whether the setting may change when a run resumes.
FREE = "yes"  # It does not change what the run computes, up to the order of float32 sums.
ALLOWED = "with --resume_allow"
FIXED = "no"  # The run's arrays or tokens depend on it.


def setting(
    default: Any, rule: Rule, meaning: str, *, on_resume: str = "", automatic: bool = False
) -> Any:
    """A dataclass field with all the facts about one setting.

    Args:
      on_resume: FREE, ALLOWED or FIXED; empty = as its section says.
      automatic: with the default, the program chooses. A run that resumes keeps the choice that
        was made when it began.
    """
    facts = {"rule": rule, "meaning": meaning, "on_resume": on_resume, "automatic": automatic}
    return dataclasses.field(default=default, metadata=facts)


def nearest_divisors(number: int, wanted: int) -> str:
    """The divisors of `number` just below and above `wanted`, such as "2 or 4"."""
    small = [n for n in range(1, math.isqrt(number) + 1) if number % n == 0]
    divisors = sorted({*small, *(number // n for n in small)})
    below = [n for n in divisors if n < wanted][-1:]
    above = [n for n in divisors if n > wanted][:1]
    return " or ".join(map(str, below + above))


def checked(name: str, value: Any, expected: type[Any], rule: Rule) -> Any:
    """`value` as the type `expected`, where a float may be given as an int.

    Raises:
      UserError: for another type, a float that is not finite, an int above MAX_INT, or a value that
        breaks the rule.
    """
    number = {int: numbers.Integral, float: numbers.Real}.get(expected)  # NumPy's numbers, too.
    if number and isinstance(value, number) and type(value) is not bool:
        with contextlib.suppress(OverflowError):
            value = expected(value)
    if type(value) is not expected:
        allowed = "" if rule is ANY else f" ({rule.text})"
        kind = expected.__name__
        raise UserError(
            f"{name} = {value!r} is not of type {kind}: give a value of this type{allowed}"
        )
    if expected is float and not math.isfinite(value):
        raise UserError(f"{name} = {value} is not a finite number: it must be {rule.text}")
    if not rule.holds(value):
        raise UserError(f"{name} = {value!r} is out of range: it must be {rule.text}")
    if expected is int and value > MAX_INT:
        raise UserError(f"{name} = {value} is out of range: it must be below 2**31")
    return value


@dataclasses.dataclass(frozen=True)
class Section:
    """One group of settings. Creating one checks every field."""

    SECTION: ClassVar[str]
    ON_RESUME: ClassVar[str]

    def __init_subclass__(cls, name: str, on_resume: str = ALLOWED) -> None:
        """`name`: in `Config`. `on_resume`: of every setting that does not say otherwise."""
        cls.SECTION, cls.ON_RESUME = name, on_resume

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            name, value = f"{self.SECTION}.{field.name}", getattr(self, field.name)
            value = checked(name, value, type(field.default), field.metadata["rule"])
            object.__setattr__(self, field.name, value)
