"""YAML: one file of settings, overridden key by key on the command line, checked whole before anything starts.

No inheritance, no interpolation. A mistake names the key, the value, what is allowed and the nearest spelling. Used by
``recipe`` for training and by ``curate.recipe`` for curation.
"""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from terrasieve.errors import UserError

S = TypeVar("S", bound=BaseModel)


class _UniqueKeyLoader(yaml.SafeLoader):
    """A YAML loader to which a key given twice is a mistake, not the last one's victory."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=deep)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


def read(path: str | Path) -> dict[str, Any]:
    """Read a recipe's keys and values, unchecked.

    Raises:
        UserError: if the file is missing, not YAML, or gives a key twice.
    """
    try:
        content = yaml.load(Path(path).read_text(encoding="utf-8"), _UniqueKeyLoader)
    except OSError as error:
        raise UserError(
            f"Cannot read the recipe {path}: {error.strerror}. Recipes of the project are in recipes/."
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"The recipe {path} is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"The recipe {path} holds {type(content).__name__}, not keys and values.")
    return content


def override(content: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Apply ``key=value`` or ``key.sub=value``, the value read as YAML, to settings in place, and return them.

    Raises:
        UserError: for an override of another form.
    """
    for text in overrides:
        _apply(content, text)
    return content


def validate(content: dict[str, Any], where: str, kind: type[S]) -> S:
    """Turn keys and values into settings.

    Raises:
        UserError: listing every mistake.
    """
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        lines = [f"  {_explain(problem, kind)}" for problem in error.errors()]
        raise UserError("\n".join([f"The recipe {where} has {len(lines)} mistake(s):", *lines])) from error


def dump(settings: BaseModel) -> str:
    """Write settings out in full as YAML; :func:`validate` reads them back to equal ones."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, width=110)


def _apply(content: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"Override {override!r} is not of the form key=value, e.g. steps=300 or method.encode=0.2.")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"The value in override {override!r} is not valid YAML: {error}") from error
    *path, last = key.split(".")
    for part in path:
        content = content.setdefault(part, {})
        if not isinstance(content, dict):
            raise UserError(f"Override {override!r}: {part!r} is a value, it has no keys below it.")
    content[last] = value


def _explain(problem: Any, kind: type[BaseModel]) -> str:
    """Word one of pydantic's findings: key, value, what is allowed, nearest spelling."""
    place = [part for part in problem["loc"] if not isinstance(part, int)]
    allowed, shown = _walk(place, kind)
    given = problem["input"]
    if problem["type"] == "extra_forbidden":
        close = difflib.get_close_matches(str(place[-1]), allowed, n=1, cutoff=0.5)
        hint = f"Did you mean {close[0]!r}?" if close else ""
        return f"{shown}: there is no such key. {hint} Allowed here: {', '.join(allowed)}.".replace("  ", " ")
    if problem["type"] == "missing":
        return f"{shown}: is required and missing."
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "union_tag_invalid":
        tags = problem["ctx"]["expected_tags"].replace("'", "").split(", ")
        close = difflib.get_close_matches(str(problem["ctx"]["tag"]), tags, n=1, cutoff=0.4)
        return f"{shown}.name: {problem['ctx']['tag']!r} is not one of {', '.join(tags)}." + (
            f" Did you mean {close[0]!r}?" if close else ""
        )
    if isinstance(given, dict):  # found by a check over several keys, whose message names them
        return f"{shown + ': ' if shown else ''}{message}."
    return f"{shown}: {message}; got {given!r} ({type(given).__name__})."


def _walk(place: list[Any], kind: type[BaseModel]) -> tuple[list[str], str]:
    """Follow a location through the settings; return the keys allowed where it ends, and the location as typed."""
    current: Any = kind
    shown: list[str] = []
    allowed: list[str] = []
    for part in place:
        models = _models(current)
        tagged = [
            model
            for model in models
            if model.model_fields.get("name") and part in get_args(model.model_fields["name"].annotation)
        ]
        if len(models) > 1 and tagged:
            current = tagged[0]
            continue
        allowed = sorted({key for model in models for key in model.model_fields})
        shown.append(str(part))
        fields = [model.model_fields[part] for model in models if part in model.model_fields]
        current = fields[0].annotation if fields else None
    return allowed, ".".join(part for part in shown if part in allowed or part == shown[-1] or "[" not in part)


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) is Annotated:
        return _models(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [model for option in get_args(annotation) for model in _models(option)]
    return []
