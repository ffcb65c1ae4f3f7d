"""Wording: what is wrong, in lines that name the setting, the rule and the value."""

from collections.abc import Callable, Collection
from difflib import get_close_matches

from pydantic import ValidationError
from pydantic_core import ErrorDetails


def describe_settings(
    error: ValidationError, *, spell: Callable[[str], str] = str, of: str = "a job", known: Collection[str] = ()
) -> list[str]:
    """A line for each thing that is wrong: `limit: input should be greater than or equal to 1, got 0`.

    `spell` makes of a setting's place in the record (`benchmarks.vqav2.limit`) what people typed; `of` and `known` say
    what has no such setting, and what it has.
    """

    def describe(one: ErrorDetails) -> str:
        rule = one["msg"].removeprefix("Value error, ")
        if not one["loc"]:  # a rule about several settings names them
            return rule
        place = spell(".".join(map(str, one["loc"])))
        if one["type"] == "extra_forbidden":
            return f"{place} is no setting of {of}{did_you_mean(str(one['loc'][-1]), known)}"
        return f"{place}: {rule[0].lower()}{rule[1:]}, got {one['input']!r}"

    return [describe(one) for one in error.errors()]


def one_line(error: BaseException) -> str:
    """What went wrong without its line breaks: stores explain themselves over several lines."""
    return " ".join(str(error).split())


def did_you_mean(name: str, known: Collection[str]) -> str:
    """`; did you mean models?`, or nothing where no known name is near."""
    near = get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""
