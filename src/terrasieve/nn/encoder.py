"""Encoder: a timm ViT that runs on a subset of its patches.

Between selection (``sieve``) and a method's loss. Built by timm, and its state dict stays timm's, so an exported
backbone loads into ``timm.create_model``. Positions are those of the full grid, added to the tokens that are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor, nn

from terrasieve import keyed
from terrasieve.errors import UserError
from terrasieve.nn import weights
from terrasieve.nn.encoder_settings import EncoderSettings, Pool
from terrasieve.nn.layouts import Recognised
from terrasieve.nn.packed import Packing, path_scales
from terrasieve.nn.patches import patchify, take
from terrasieve.nn.position import sincos_2d
from terrasieve.nn.windows import Windows, whole_blocks
from terrasieve.sieve.ragged import Ragged, take_ragged

__all__ = ["Encoded", "Encoder", "EncoderSettings", "Pool", "initialise"]


class Encoded(NamedTuple):
    """What the encoder made of the kept patches.

    Attributes:
        cls_BD: class tokens, after the final norm.
        tokens: (B, K, D), or (T, D) for a ragged layout; after the final norm, without the class token.
        taps: outputs of the asked blocks, laid out as ``tokens``, not normed.
    """

    cls_BD: Tensor
    tokens: Tensor
    taps: list[Tensor]


class Encoder(nn.Module):
    """A timm VisionTransformer over all patches or over those named by ids.

    Attributes:
        vit: the timm model; ``vit.state_dict()`` is what is exported.
        grid: rows and columns of patches.
        arguments: what ``timm.create_model`` was given beside the name.
        notes: what was done to published weights, in words.
    """

    def __init__(
        self,
        settings: EncoderSettings,
        channels: int,
        size_px: tuple[int, int],
        seed: int = 0,
        bands: Sequence[str] | None = None,
        content: Recognised | None = None,
    ) -> None:
        """Build the ViT with fixed sine-cosine positions and Xavier weights drawn from ``seed``.

        Args:
            settings: name and patch size.
            channels: number of bands.
            size_px: height and width of the images.
            seed: of the initial weights.
            bands: names of the bands, by which published weights are fitted to them.
            content: of ``settings.weights``, where that file has been read already.

        Raises:
            UserError: if the patch does not divide the image, timm has no plain ViT of that name, or the weights to
                begin with cannot be had or do not fit.
        """
        super().__init__()
        p = settings.patch_px
        if size_px[0] % p or size_px[1] % p:
            raise UserError(
                f"encoder.patch_px: a patch of {p} px does not divide an image of {size_px[0]} x {size_px[1]} px; "
                f"choose image.size_px as a multiple of {p}, or another patch."
            )
        self.patch_px, self.grid = p, (size_px[0] // p, size_px[1] // p)
        self.arguments: dict[str, Any] = {
            "img_size": list(size_px),
            "patch_size": p,
            "in_chans": channels,
            "global_pool": "token",
        }
        self.arguments |= {"depth": settings.depth} if settings.depth else {}
        self.name, self.notes = settings.name, list[str]()
        self.vit = weights.plain_vit(settings, self.arguments, bands or (), self.notes)
        self.width = self.vit.embed_dim
        self.patch_values = channels * p * p
        self.drop_path = settings.drop_path
        self.window, depth = settings.window, len(self.vit.blocks)
        self.whole = whole_blocks(depth, min(settings.whole_blocks, depth)) if self.window else frozenset(range(depth))
        if settings.weights is None:
            initialise(self.vit, seed, "encoder")
            positions = sincos_2d(*self.grid, self.width)
            self.positions.data = torch.cat([torch.zeros(1, self.width), positions])[None]
        elif settings.weights != "imagenet":
            self.notes += weights.load(self.vit, settings.weights, p, self.grid, bands or (), settings.gsd_m, content)
        self.positions.requires_grad_(settings.weights == "imagenet")

    @property
    def positions(self) -> nn.Parameter:
        """Positions of the class token and of the grid, (1, 1 + N, D); learnt further only with timm's own weights."""
        return cast(nn.Parameter, self.vit.pos_embed)

    @property
    def patches(self) -> int:
        """Number of patches in an image, N."""
        return self.grid[0] * self.grid[1]

    def embed(
        self,
        patches_BKP: Tensor,
        ids_BK: Tensor | None = None,
        *,
        position: bool = True,
        grid: tuple[int, int] | None = None,
    ) -> Tensor:
        """Embed flat patches and add the positions of the full grid: (B, K, P) -> (B, K, D).

        Args:
            patches_BKP: all patches, or those at ``ids_BK``.
            ids_BK: where the patches stand on the grid; None for all N in order.
            position: False gives the content alone.
            grid: rows and columns of patches; None = the encoder's own, else its positions are resampled.
        """
        projection = self.vit.patch_embed.proj
        tokens_BKD = F.linear(patches_BKP, projection.weight.flatten(1), projection.bias)
        if not position:
            return tokens_BKD
        grid_ND = self._positions_on(grid or self.grid)
        return tokens_BKD + (grid_ND if ids_BK is None else grid_ND[ids_BK])

    def _positions_on(self, grid: tuple[int, int]) -> Tensor:
        if grid == self.grid:
            return self.positions[0, 1:]
        resampled: Tensor = resample_abs_pos_embed(self.positions[:, 1:], list(grid), list(self.grid), 0)
        return resampled[0]

    def forward(
        self,
        patches_BKP: Tensor,
        ids_BK: Tensor | None = None,
        *,
        every_block: bool = False,
        grid: tuple[int, int] | None = None,
    ) -> Tensor | list[Tensor]:
        """Encode patches: (B, K, P) -> (B, 1 + K, D), class token first, after the final norm.

        Args:
            patches_BKP: flat patches, see :func:`terrasieve.nn.patches.patchify`.
            ids_BK: their places on the grid; None for the full grid in order.
            every_block: return the outputs of all blocks, the last one normed.
            grid: see :meth:`embed`.
        """
        if self.training and self.drop_path:
            raise UserError(
                f"encoder.drop_path: {self.drop_path} is for supervised methods; pretraining drops no paths; set 0."
            )
        self._refuse_window()
        x = self._join(self.embed(patches_BKP, ids_BK, grid=grid))
        outputs: list[Tensor] = []
        for block in self.vit.blocks:
            x = block(x)
            if every_block:
                outputs.append(x)
        last: Tensor = self.vit.norm(x)
        return [*outputs[:-1], last] if every_block else last

    def encode_kept(
        self,
        patches_BNP: Tensor,
        kept: Tensor | Ragged | None,
        taps: Sequence[int] = (),
        path_noise_BE: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Encoded:
        """Encode the kept ones of all patches, at their places on the full grid.

        Args:
            patches_BNP: all flat patches, see :func:`terrasieve.nn.patches.patchify`.
            kept: ids (B, K); a ragged layout; None for all.
            taps: blocks, counted from 0, whose outputs are wanted as well, in this order.
            path_noise_BE: uniform in [0, 1), decides which branches are left out, E = 2 x blocks; needed in training
                with ``drop_path`` (``methods.reconstruction.draw_noise`` makes it), not looked at otherwise.
            positions: (T, D), where a ragged layout's patches stand if not on the grid; they may then be the patches
                of several images, which see each other.

        Raises:
            ValueError: if there is no such block, or no noise where it is needed.
        """
        depth = len(self.vit.blocks)
        if not all(0 <= tap < depth for tap in taps):
            raise ValueError(f"taps {tuple(taps)}: the blocks are 0 to {depth - 1}")
        windows: Windows | None = None
        if self.window:
            if positions is not None:
                self._refuse_window()
            every = torch.arange(patches_BNP.shape[1], device=patches_BNP.device).expand(len(patches_BNP), -1)
            windows = Windows.of(every if kept is None else kept, self.grid, self.window)
            kept = windows.layout
        packing: Packing | None = None
        if isinstance(kept, Ragged):
            packing = windows.whole if windows else Packing.of(kept, patches_BNP.shape[1])
            taken = take_ragged(patches_BNP, kept)[None]
            tokens_TD = self.embed(
                taken, None if positions is not None else kept.ids_T[None], position=positions is None
            )[0]
            tokens_TD = tokens_TD if positions is None else tokens_TD + positions
            cls = cast(Tensor, self.vit.cls_token) + self.positions[:, :1]
            x = self.vit.norm_pre(packing.join(cls[0], tokens_TD))
        else:
            x = self._join(self.embed(patches_BNP if kept is None else take(patches_BNP, kept), kept))
        outputs: dict[int, Tensor] = {}
        for number, block in enumerate(self.vit.blocks):
            seen = packing if windows is None or number in self.whole else windows.parts
            x = block(x, seen, self._scales(number, path_noise_BE, packing))
            if number in taps:
                outputs[number] = _split(x, packing)[1]
        cls_BD, tokens = _split(self.vit.norm(x), packing)
        if windows:
            tokens, outputs = windows.back(tokens), {tap: windows.back(values) for tap, values in outputs.items()}
        return Encoded(cls_BD, tokens, [outputs[tap] for tap in taps])

    def _join(self, tokens_BKD: Tensor) -> Tensor:
        cls = (cast(Tensor, self.vit.cls_token) + self.positions[:, :1]).expand(tokens_BKD.shape[0], -1, -1)
        joined: Tensor = self.vit.norm_pre(torch.cat([cls.to(tokens_BKD.dtype), tokens_BKD], dim=1))
        return joined

    def _scales(
        self, number: int, path_noise_BE: Tensor | None, packing: Packing | None
    ) -> tuple[Tensor, Tensor] | None:
        """Return the factors on a block's two branches; the rate rises linearly over the blocks."""
        if not (self.training and self.drop_path):
            return None
        if path_noise_BE is None:
            raise ValueError("drop_path needs path_noise_BE in training")
        rate = self.drop_path * number / max(len(self.vit.blocks) - 1, 1)
        return path_scales(rate, path_noise_BE[:, 2 * number : 2 * number + 2], packing)

    def _refuse_window(self) -> None:
        if self.window:
            size_px = " x ".join(str(side * self.patch_px) for side in self.grid)
            raise UserError(
                f"encoder.window: {self.window} is for adapt, and for images of {size_px} px as there; leave it out."
            )

    def encode(self, images_BCHW: Tensor, ids_BK: Tensor | None = None) -> Tensor:
        """Encode normalised images, all patches or those at ``ids_BK``: (B, 1 + K, D).

        Images of another size than the encoder was built for see its positions resampled to their grid.
        """
        patches_BNP = patchify(images_BCHW, self.patch_px)
        grid = (images_BCHW.shape[-2] // self.patch_px, images_BCHW.shape[-1] // self.patch_px)
        if self.window and grid == self.grid:
            encoded = self.encode_kept(patches_BNP, ids_BK)
            return torch.cat([encoded.cls_BD[:, None], encoded.tokens], dim=1)
        return cast(Tensor, self(patches_BNP if ids_BK is None else take(patches_BNP, ids_BK), ids_BK, grid=grid))

    def features(self, images_BCHW: Tensor, pool: Pool = "mean") -> Tensor:
        """Compute one vector per image: (B, C, H, W) normalised -> (B, D).

        Args:
            images_BCHW: float images, normalised per band as in training.
            pool: mean over patch tokens, or the class token.
        """
        tokens = self.encode(images_BCHW)
        return tokens[:, 1:].mean(dim=1) if pool == "mean" else tokens[:, 0]


def _split(x: Tensor, packing: Packing | None) -> tuple[Tensor, Tensor]:
    """Take class tokens and patches apart."""
    return (x[:, 0], x[:, 1:]) if packing is None else packing.split(x)


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
