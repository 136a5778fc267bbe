"""Section: the frozen pydantic model that every part of a recipe is made of.

Each package describes its own settings as a ``Section`` beside the code that reads them; ``recipe.py`` puts them
together. Nothing is mutable and an unknown key is an error, so that a misspelt setting is never silently ignored.
"""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A part of a recipe: frozen, extra keys forbidden, defaults validated too."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)
