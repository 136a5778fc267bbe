"""README names every file of the package, and its commands exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_file_has_its_line() -> None:
    source = ROOT / "src" / "terrasieve"
    missing = [
        name for path in source.rglob("*.py") if f"| `{(name := str(path.relative_to(source)))}` |" not in README
    ]
    assert not missing
    named = re.findall(r"^\| `([\w/]+\.py)` \|", README, re.MULTILINE)
    assert not [name for name in named if not (source / name).exists()]


def test_pictures_and_links_are_there() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if "://" not in target:
            assert (ROOT / target).exists(), target


def test_nothing_names_this_machine_or_a_registry() -> None:
    import subprocess

    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        return
    banned = ("/work/" + "main", "/root" + "/", "pypi" + ".org", "python" + "hosted", "registry.npm" + "js")
    for name in tracked.stdout.split():
        if (ROOT / name).suffix in {".py", ".md", ".toml", ".yaml", ".json", ".cff", ".j2", ""}:
            text = (ROOT / name).read_text(encoding="utf-8", errors="ignore")
            assert not [word for word in banned if word in text], name


def typed() -> list[tuple[str, list[str]]]:
    """Return (where, words) of every `terrasieve ...` that the README and docs tell a reader to type."""
    found = []
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        text = page.read_text(encoding="utf-8")
        blocks = "\n".join(re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)).replace("\\\n", " ")
        lines = [re.sub(r"\s#.*", "", line) for line in blocks.splitlines()] + re.findall(r"`(terrasieve [^`]+)`", text)
        for command in (part for line in lines for part in re.split(r"[;|]|&&", line)):
            words = shlex.split(command.strip().removeprefix("$ ").removeprefix("uv run "))
            if words[:1] == ["terrasieve"]:
                found.append((f"{page.name}: {command.strip()}", words[1:]))
    return found


def test_commands_of_the_docs_can_be_typed_as_they_stand() -> None:
    from typer.main import get_command

    from terrasieve.cli import app

    commands = get_command(app).commands  # type: ignore[attr-defined]
    assert len(typed()) > 100
    for where, (name, *words) in typed():
        if name.startswith(("-", "[")):
            continue
        assert name in commands, where
        options = {
            option for parameter in commands[name].params for option in parameter.opts + parameter.secondary_opts
        }
        given = {word.partition("=")[0] for word in words if word.startswith("-")}
        assert given <= options | {"--help", "-h", "-"}, f"{where}: {given - options}"
        recipes = [word for word in words if word.startswith("recipes/") and word.endswith(".yaml")]
        assert all((ROOT / recipe).is_file() for recipe in recipes), where


def test_overrides_of_the_docs_fit_their_recipes() -> None:
    from terrasieve import recipe

    checked = 0
    for _, words in typed():
        files = [ROOT / word for word in words if word.startswith("recipes/") and word.endswith(".yaml")]
        if words[0] in ("pretrain", "adapt", "sweep") and files:
            given = [word for word in words if re.match(r"[a-z_.]+=[^$]*$", word)]
            recipe.load(files[0], given, recipe.kind_of(files[0]))  # a UserError names what is wrong
            checked += 1
    assert checked > 15


def test_every_setting_of_a_curation_is_in_its_page() -> None:
    from typing import get_args

    from terrasieve.curate.recipe import CurateRecipe
    from terrasieve.section import Section

    page = (ROOT / "docs" / "curate.md").read_text(encoding="utf-8").partition("## Settings")[2].partition("\n## ")[0]
    for name, field in CurateRecipe.model_fields.items():
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, Section) and kind.__module__ != "terrasieve.curate.listing":
                assert [key for key in (name, *kind.model_fields) if f"`{key}`" not in page] == [], name
