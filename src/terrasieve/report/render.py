"""Render: a template and its values as one self-contained HTML page, written whole or not at all."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import jinja2

import terrasieve
from terrasieve.files import written_aside


def write_page(template: str, path: Path, **values: Any) -> Path:
    """Fill a template of this folder and write it.

    Args:
        template: file name.
        path: of the page.
        values: what the template names, beside ``version``.

    Returns:
        ``path``.
    """
    html = render(template, **values)
    with written_aside(path) as aside:
        aside.write_text(html, encoding="utf-8")
    return path


def render(template: str, **values: Any) -> str:
    """Fill a template of this folder."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(version=terrasieve.__version__, **values)


def source(*names: str) -> str:
    """Return files of this folder as they are, one after another."""
    return "".join((Path(__file__).parent / name).read_text(encoding="utf-8") for name in names)


def data_uri(kind: str, content: bytes) -> str:
    """Return bytes of a media type, e.g. ``image/jpeg``, as a data URI."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
