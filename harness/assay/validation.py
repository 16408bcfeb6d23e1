"""Validation of the files that a user writes: pydantic checks them, and one sentence says what is wrong.

The sentence names the file, the key, the value seen, and what was expected, which the model's JSON Schema says.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from assay.errors import InputError

MOST_LISTED = 16
"""A message lists at most this many known names: a longer list hides the rest of the sentence."""
MOST_SHOWN = 60
"""Characters of a value that a message shows."""

Text = Annotated[str, Field(min_length=1)]
"""A string that is not empty."""
Model = TypeVar("Model", bound=BaseModel)


class FileModel(BaseModel):
    """Base of the models of such files.

    Unknown keys are errors, no value is converted (a string is no number, `true` is no integer), and numbers are
    finite. A field's type is no union, except with None: an error does not tell which member of a union was meant. A
    tuple or an enum takes `Field(strict=False)`, since files have lists and strings instead.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def matching(pattern: str, expected: str) -> AfterValidator:
    """Part of an annotated string type: the whole string must match `pattern`.

    Args:
        expected: the pattern in words, as in `a name of lower-case letters`.
    """

    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(expected)
        return text

    return AfterValidator(check)


def validate(model: type[Model], data: dict[str, Any], where: Path | str, **given: Any) -> Model:
    """Build a model from the content of a file.

    A validator of the model may raise ValueError; its text is what was expected, as in `a name without /`.

    Args:
        where: what a message names: the file, and whatever else the values come from.
        given: fields that the file does not contain, such as its own name.

    Raises:
        InputError: a key is unknown or missing, or a value is not what the model expects. It tells the first problem.
    """
    fields = [field.alias or name for name, field in model.model_fields.items() if name not in given]
    refuse_unknown_names(where, "key", [key for key in data if key in given], fields)
    try:
        return model.model_validate({**data, **given})
    except ValidationError as invalid:
        errors = invalid.errors(include_url=False)
    schema = model.model_json_schema()
    # A misspelt key is missing under its right name too: what was written comes before what was not.
    error = min(errors, key=lambda one: one["type"] != "extra_forbidden")
    raise InputError(f"{where}: {_sentence(error, _inlined(schema, schema.get('$defs', {})), given)}")


def refuse_unknown_names(where: Path | str, what: str, seen: Iterable[str], known: Iterable[str]) -> None:
    """Raise InputError for the first name of `seen` that is not in `known`; it suggests a known one if one is near.

    Args:
        where: what the message begins with: a file or a command.
        what: what the names are names of, as in `gate`.
    """
    known = list(known)
    for name in seen:
        if name not in known:
            raise InputError(f"{where}: {_unknown(what, name, known)}")


def _unknown(what: str, name: str, known: list[str], table: str = "") -> str:
    """The sentence on a name that is not in `known`, all of them names in `table`."""
    within = f"{table}." if table else ""
    text = f"unknown {what} '{within}{_key(name)}'."
    near = get_close_matches(name, known, n=1)
    if near:
        text += f" Did you mean '{within}{_key(near[0])}'?"
    if len(known) <= MOST_LISTED or not near:
        more = [f"and {len(known) - MOST_LISTED} more"] if len(known) > MOST_LISTED else []
        listed = ", ".join([*known[:MOST_LISTED], *more]) or "none"
        text += f" Known {what}s{table and f' of {table}'}: {listed}."
    return text


def _sentence(error: ErrorDetails, schema: dict[str, Any], given: Iterable[str]) -> str:
    """What is wrong, for a person.

    Args:
        schema: the JSON Schema of the whole file, without references.
        given: fields that are no keys of the file.
    """
    place = error["loc"]
    is_name = bool(place) and place[-1] == "[key]"
    place = place[:-1] if is_name else place
    key, table = _dotted(place), _dotted(place[:-1])
    if error["type"] == "extra_forbidden":
        known = [name for name in _part(schema, place[:-1]).get("properties", {}) if name not in given]
        return _unknown("key", str(place[-1]), known, table)
    if error["type"] == "value_error":
        expected = str(error["ctx"]["error"])
    else:
        expected = "another key" if is_name else _expected(_part(schema, place))
    if error["type"] == "missing":
        return f"the key {key} is missing; expected {expected}."
    if is_name:
        return f"{table} has the key {_shown(error['input'])}; expected {expected}."
    return f"{key} = {_shown(error['input'])}; expected {expected}." if key else f"expected {expected}."


def _dotted(place: tuple[str | int, ...]) -> str:
    """A key as TOML spells it, as in `tasks.style.headings.en[0]`."""
    text = ""
    for step in place:
        text += f"[{step}]" if isinstance(step, int) else f".{_key(step)}" if text else _key(step)
    return text


def _key(name: str) -> str:
    return name if re.fullmatch(r"[\w<>-]+", name) else _shown(name)


def _shown(value: Any) -> str:
    """A value as the file spells it, in one line, cut if it is long, without control characters."""
    text = repr(value) if isinstance(value, float) else json.dumps(value, ensure_ascii=False, default=str)
    text = text if len(text) <= MOST_SHOWN else text[: MOST_SHOWN - 1] + "…"
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def _inlined(part: Any, definitions: dict[str, Any]) -> Any:
    """A JSON Schema with each reference replaced by what it refers to, and each `X or null` by X."""
    if not isinstance(part, dict):
        return part
    for one in part.get("anyOf", []):
        if one.get("type") != "null":
            return _inlined(one, definitions)
    if "$ref" in part:
        return _inlined(definitions[part["$ref"].removeprefix("#/$defs/")], definitions)
    return {name: _inlined(value, definitions) for name, value in part.items() if name != "$defs"}


def _part(schema: dict[str, Any], place: tuple[str | int, ...]) -> dict[str, Any]:
    """The part of a JSON Schema that describes the value at `place`; empty if there is none."""
    for step in place:
        values = schema.get("items" if isinstance(step, int) else "additionalProperties")
        schema = schema.get("properties", {}).get(step) or (values if isinstance(values, dict) else {})
    return schema


def _expected(schema: dict[str, Any]) -> str:
    """What a JSON Schema expects, in words."""
    if "enum" in schema or "const" in schema:
        return " or ".join(_shown(value) for value in schema.get("enum", [schema.get("const")]))
    match schema.get("type"):
        case "boolean":
            return "true or false"
        case "integer":
            return f"a whole number{_bounds(schema)}"
        case "number":
            return f"a number{_bounds(schema)}"
        case "string":
            most = f" of at most {schema['maxLength']} characters" if "maxLength" in schema else ""
            return f"a {'non-empty ' if schema.get('minLength') else ''}string{most}"
        case "array":
            list_ = f"a {'non-empty ' if schema.get('minItems') else ''}list"
            return f"{list_}, each entry {_expected(schema['items'])}" if schema.get("items") else list_
        case "object" if "properties" in schema:
            return f"a table with the keys {', '.join(schema['properties'])}"
        case "object":
            table = f"a {'non-empty ' if schema.get('minProperties') else ''}table"
            values = schema.get("additionalProperties")
            return f"{table}, each value {_expected(values)}" if isinstance(values, dict) else table
    return "another value"


def _bounds(schema: dict[str, Any]) -> str:
    """As in ` of at least 0 and below 1`."""
    words = {
        "minimum": "of at least",
        "exclusiveMinimum": "above",
        "maximum": "of at most",
        "exclusiveMaximum": "below",
    }
    bounds = " and ".join(f"{word} {schema[name]}" for name, word in words.items() if name in schema)
    return f" {bounds}" if bounds else ""
