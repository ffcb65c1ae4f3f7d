"""The table of a sweep for people: Markdown, and one page that needs nothing but itself."""

from collections.abc import Sequence

from pipeline.sweep.results import Result


def to_markdown(results: Sequence[Result]) -> str:
    """A table of the headline metrics, one of all others, and why cells are incomplete."""
    return ""


def to_html(results: Sequence[Result]) -> str:
    """The page."""
    return ""
