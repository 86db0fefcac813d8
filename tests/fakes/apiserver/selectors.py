"""Label and field selectors: `app=web,tier in (a,b),!old` and `metadata.name=x`."""

import re
from collections.abc import Callable
from typing import Any

from tests.fakes.apiserver.status import bad_request

__all__ = ["Predicate", "field_selector", "label_selector"]

Json = dict[str, Any]
Predicate = Callable[[Json], bool]

_SET = re.compile(r"^(\S+)\s+(in|notin)\s+\(([^)]*)\)$")
_EQUALITY = re.compile(r"^([^!=]+?)\s*(==|=|!=)\s*(.*)$")
# Commas inside parentheses belong to a set.
_COMMA = re.compile(r",(?![^(]*\))")


def label_selector(text: str) -> Predicate:
    """A predicate on objects. Raises ApiError 400."""
    terms = [_label_term(term.strip()) for term in _COMMA.split(text) if term.strip()]

    def matches(item: Json) -> bool:
        labels = item["metadata"].get("labels") or {}
        return all(term(labels) for term in terms)

    return matches


def _label_term(term: str) -> Callable[[dict[str, str]], bool]:
    if match := _SET.match(term):
        key, operator, listing = match.groups()
        values = {value.strip() for value in listing.split(",")}
        if operator == "in":
            return lambda labels: labels.get(key) in values
        return lambda labels: labels.get(key) not in values
    if match := _EQUALITY.match(term):
        key, operator, value = match.groups()
        if operator == "!=":
            return lambda labels: labels.get(key) != value
        return lambda labels: labels.get(key) == value
    if term.startswith("!"):
        return lambda labels: term[1:].strip() not in labels
    if " " in term:
        raise bad_request(f"unable to parse requirement: {term!r}")
    return lambda labels: term in labels


def field_selector(text: str) -> Predicate:
    """A predicate on objects. Any dotted path is a field here; the real one knows a few per resource."""
    terms: list[tuple[list[str], str, str]] = []
    for term in filter(None, (part.strip() for part in text.split(","))):
        match = _EQUALITY.match(term)
        if not match:
            raise bad_request(f"invalid field selector: {term!r}")
        path, operator, value = match.groups()
        terms.append((path.split("."), operator, value))

    def matches(item: Json) -> bool:
        return all(
            (_field(item, path) == value) == (operator != "!=")
            for path, operator, value in terms
        )

    return matches


def _field(item: Any, path: list[str]) -> str:
    for key in path:
        item = item.get(key) if isinstance(item, dict) else None
    if isinstance(item, bool):
        return str(item).lower()
    return "" if item is None else str(item)
