"""Encoder: a timm ViT that runs on a subset of its patches.

Between selection (``sieve``) and a method's loss. Built by timm, and its state dict stays timm's, so an exported
backbone loads into ``timm.create_model``. Positions are those of the full grid, added to the tokens that are kept.
"""

from __future__ import annotations

from typing import Any, Literal, cast

import timm
import torch
import torch.nn.functional as F
from pydantic import Field
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from terrasieve import keyed
from terrasieve.errors import UserError
from terrasieve.nn.patches import patchify, take
from terrasieve.nn.position import sincos_2d
from terrasieve.section import Section

Pool = Literal["mean", "cls"]


class EncoderSettings(Section):
    """Which ViT to build.

    Attributes:
        name: timm's name of a plain ViT; Ti, S, B and L are named here, any other plain ViT of timm works too.
        patch_px: side of a patch in pixels; divides the image's sides.
        depth: number of blocks; None = the named ViT's own.
    """

    name: str = "vit_small_patch16_224"
    patch_px: int = Field(default=16, gt=0)
    depth: int | None = Field(default=None, gt=0)


class Encoder(nn.Module):
    """A timm VisionTransformer over all patches or over those named by ids.

    Attributes:
        vit: the timm model; ``vit.state_dict()`` is what is exported.
        grid: rows and columns of patches.
        arguments: what ``timm.create_model`` was given beside the name.
    """

    def __init__(self, settings: EncoderSettings, channels: int, size_px: tuple[int, int], seed: int = 0) -> None:
        """Build the ViT with fixed sine-cosine positions and Xavier weights drawn from ``seed``.

        Args:
            settings: name and patch size.
            channels: number of bands.
            size_px: height and width of the images.
            seed: of the initial weights.

        Raises:
            UserError: if the patch does not divide the image, or timm has no plain ViT of that name.
        """
        super().__init__()
        p = settings.patch_px
        if size_px[0] % p or size_px[1] % p:
            raise UserError(
                f"encoder.patch_px: a patch of {p} px does not divide an image of {size_px[0]} x {size_px[1]} px. "
                f"Choose image.size_px as a multiple of {p}, or another patch."
            )
        self.patch_px = p
        self.grid = (size_px[0] // p, size_px[1] // p)
        self.arguments: dict[str, Any] = {
            "img_size": list(size_px),
            "patch_size": p,
            "in_chans": channels,
            "global_pool": "token",
        }
        self.arguments |= {"depth": settings.depth} if settings.depth else {}
        self.name = settings.name
        try:
            model = timm.create_model(settings.name, num_classes=0, **self.arguments)
        except (RuntimeError, TypeError, ValueError, AssertionError) as error:
            raise UserError(f"encoder.name: timm cannot build {settings.name!r}: {error}") from error
        if not isinstance(model, VisionTransformer) or model.num_prefix_tokens != 1 or model.pos_embed is None:
            raise UserError(
                f"encoder.name: {settings.name!r} is not a plain ViT with one class token. "
                "Use vit_tiny_patch16_224, vit_small_patch16_224, vit_base_patch16_224 or vit_large_patch16_224."
            )
        self.vit: VisionTransformer = model
        self.width = model.embed_dim
        self.patch_values = channels * p * p
        initialise(self.vit, seed, "encoder")
        positions = sincos_2d(*self.grid, self.width)
        self.positions.data = torch.cat([torch.zeros(1, self.width), positions])[None]
        self.positions.requires_grad_(False)

    @property
    def positions(self) -> nn.Parameter:
        """Fixed positions of the class token (zero) and of the grid, (1, 1 + N, D)."""
        return cast(nn.Parameter, self.vit.pos_embed)

    @property
    def patches(self) -> int:
        """Number of patches in an image, N."""
        return self.grid[0] * self.grid[1]

    def embed(self, patches_BKP: Tensor, ids_BK: Tensor | None = None, *, position: bool = True) -> Tensor:
        """Embed flat patches and add the positions of the full grid: (B, K, P) -> (B, K, D).

        Args:
            patches_BKP: all patches, or those at ``ids_BK``.
            ids_BK: where the patches stand on the grid; None for all N in order.
            position: False gives the content alone.
        """
        projection = self.vit.patch_embed.proj
        tokens_BKD = F.linear(patches_BKP, projection.weight.flatten(1), projection.bias)
        if not position:
            return tokens_BKD
        grid_ND = self.positions[0, 1:]
        return tokens_BKD + (grid_ND if ids_BK is None else grid_ND[ids_BK])

    def forward(
        self, patches_BKP: Tensor, ids_BK: Tensor | None = None, *, every_block: bool = False
    ) -> Tensor | list[Tensor]:
        """Encode patches: (B, K, P) -> (B, 1 + K, D), class token first, after the final norm.

        Args:
            patches_BKP: flat patches, see :func:`terrasieve.nn.patches.patchify`.
            ids_BK: their places on the grid; None for the full grid in order.
            every_block: return the outputs of all blocks, the last one normed.
        """
        tokens_BKD = self.embed(patches_BKP, ids_BK)
        cls = (cast(Tensor, self.vit.cls_token) + self.positions[:, :1]).expand(tokens_BKD.shape[0], -1, -1)
        x = self.vit.norm_pre(torch.cat([cls.to(tokens_BKD.dtype), tokens_BKD], dim=1))
        outputs: list[Tensor] = []
        for block in self.vit.blocks:
            x = block(x)
            if every_block:
                outputs.append(x)
        last: Tensor = self.vit.norm(x)
        return [*outputs[:-1], last] if every_block else last

    def encode(self, images_BCHW: Tensor, ids_BK: Tensor | None = None) -> Tensor:
        """Encode normalised images, all patches or those at ``ids_BK``: (B, 1 + K, D)."""
        patches_BNP = patchify(images_BCHW, self.patch_px)
        return cast(Tensor, self(patches_BNP if ids_BK is None else take(patches_BNP, ids_BK), ids_BK))

    def features(self, images_BCHW: Tensor, pool: Pool = "mean") -> Tensor:
        """Compute one vector per image: (B, C, H, W) normalised -> (B, D).

        Args:
            images_BCHW: float images, normalised per band as in training.
            pool: mean over patch tokens, or the class token.
        """
        tokens = self.encode(images_BCHW)
        return tokens[:, 1:].mean(dim=1) if pool == "mean" else tokens[:, 0]


def initialise(module: nn.Module, seed: int, name: str) -> None:
    """Draw weights as MAE does: Xavier uniform for linear and patch-embedding weights, zero biases, N(0, .02) tokens.

    Every parameter has its own keyed stream, so adding a layer does not change the others.
    """
    for path, parameter in module.named_parameters():
        if parameter.is_meta:
            continue
        draw = keyed.generator(seed, f"weights/{name}/{path}")
        with torch.no_grad():
            if path.endswith("token"):
                parameter.normal_(std=0.02, generator=draw)
            elif parameter.ndim >= 2 and "pos_embed" not in path:
                nn.init.xavier_uniform_(parameter.view(parameter.shape[0], -1), generator=draw)
            elif path.endswith("bias"):
                parameter.zero_()
