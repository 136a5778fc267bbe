"""Which backbone to build: the recipe's ``encoder`` section, for ``encoder`` (ViTs) and ``convolution`` (others)."""

from __future__ import annotations

from typing import Any, Literal, Self

import timm
from pydantic import Field, model_validator

from terrasieve.section import Section

Pool = Literal["mean", "cls"]


def is_vit(name: str) -> bool:
    """Tell whether timm's backbone of this name is a ViT; a name that timm does not know passes for one."""
    return not timm.is_model(name) or bool(timm.models.is_model_in_modules(name, ["vision_transformer"]))


class EncoderSettings(Section):
    """Which backbone to build.

    Attributes:
        name: timm's name of a plain ViT; Ti, S, B and L are named here, any other plain ViT of timm works too. The
            contrastive methods take any backbone of timm, e.g. ``resnet18``.
        patch_px: side of a patch in pixels; divides the image's sides. Only a ViT has one; 0 = no ViT.
        depth: number of blocks; None = the named ViT's own.
        weights: where training begins. None = at random; ``imagenet`` = timm's pretrained weights of that name; else a
            run's folder, an exported folder, or a file of published weights (docs/weights.md lists the layouts).
        gsd_m: metres per pixel of the images, which Scale-MAE's published weights ask for; None = 1.
        drop_path: stochastic depth, the last block's probability of being left out; rises linearly from 0.
        window: of ``adapt``: attention within squares of so many patches a side, for large images; None = everywhere.
        whole_blocks: with ``window``, blocks that see the whole image, evenly spaced, the last one among them.
    """

    name: str = "vit_small_patch16_224"
    patch_px: int = Field(default=16, ge=0)
    depth: int | None = Field(default=None, gt=0)
    weights: str | None = None
    gsd_m: float | None = Field(default=None, gt=0)
    drop_path: float = Field(default=0.0, ge=0, lt=1)
    window: int | None = Field(default=None, ge=1)
    whole_blocks: int = Field(default=4, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _without_patches(cls, given: Any) -> Any:
        if isinstance(given, dict) and not is_vit(str(given.get("name", cls.model_fields["name"].default))):
            return {"patch_px": 0, **given}
        return given

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if is_vit(self.name):
            if self.patch_px == 0:
                raise ValueError(f"patch_px 0: {self.name} is a ViT, whose patches have a side in pixels, e.g. 16")
            return self
        given = [
            key
            for key, no in (("patch_px", 0), ("depth", None), ("drop_path", 0.0), ("gsd_m", None), ("window", None))
            if getattr(self, key) != no
        ]
        if given:
            raise ValueError(f"{', '.join(given)}: only a ViT has this, and {self.name} is none; leave it out")
        return self
