"""Groups of bands: SatMAE's and SatMAE++'s multispectral ViT, several tokens at a place, one of each group of bands.

Beside ``encoder``, for evaluation alone: masking methods choose places of a grid, this ViT has G tokens at each. It is
timm's ViT behind a patch embedding of its own, so the blocks are timm's. Source: SatMAE (Cong et al., NeurIPS 2022),
section 3.3: positions and group embeddings are concatenated along the channels.

Legend: B images, C bands, G groups, N places, D channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import timm
import torch
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from terrasieve.errors import UserError
from terrasieve.nn import fitting
from terrasieve.nn.encoder import initialise
from terrasieve.nn.encoder_settings import Pool
from terrasieve.nn.layouts import Recognised, left_over

SIZES = (4, 4, 2)  # of the published groups: B2 B3 B4 B8, B5 B6 B7 B8A, B11 B12
ORDER = (0, 1, 2, 6, 3, 4, 5, 7, 8, 9)  # the ten bands, group by group


class GroupPatches(nn.Module):
    """Embed each group of bands on its own: (B, C, H, W) -> (B, G * N, D), group after group."""

    def __init__(self, img_size: Any, patch_size: int, in_chans: int, embed_dim: int, **_: Any) -> None:
        """Build one convolution for each group; timm calls this with its own names."""
        super().__init__()
        assert in_chans == sum(SIZES)
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        self.grid_size = (height // patch_size, width // patch_size)
        self.num_patches = len(SIZES) * self.grid_size[0] * self.grid_size[1]
        self.patch_size = (patch_size, patch_size)
        self.groups = nn.ModuleList([nn.Conv2d(size, embed_dim, patch_size, stride=patch_size) for size in SIZES])

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """Embed images whose bands lie group by group."""
        parts = torch.split(image_BCHW, list(SIZES), dim=1)
        embedded = [conv(part).flatten(2) for conv, part in zip(self.groups, parts, strict=True)]
        return torch.cat(embedded, dim=2).transpose(1, 2)


class GroupEncoder(nn.Module):
    """A ViT over groups of bands, for features of whole images.

    Attributes:
        vit: timm's ViT.
        width: of the features.
        notes: what was done to the weights, in words.
    """

    order: Tensor

    def __init__(
        self,
        found: Recognised,
        bands: Sequence[str],
        size_px: tuple[int, int],
        origin: str,
    ) -> None:
        """Build the ViT of these weights and load them.

        Args:
            found: of the layout with channel groups.
            bands: of the images; the ten that the weights know are picked by name, or taken in order if unnamed.
            size_px: height and width of the images.
            origin: file, for messages.

        Raises:
            UserError: other groups, bands that are missing, or weights that do not fit.
        """
        super().__init__()
        state = dict(found.state)
        _check(state, found, origin)
        width, _, _, self.patch_px = state["patch_embed.0.proj.weight"].shape
        if any(side % self.patch_px for side in size_px):
            raise UserError(f"{origin}: a patch of {self.patch_px} px does not divide {size_px[0]} x {size_px[1]} px.")
        self.grid = (size_px[0] // self.patch_px, size_px[1] // self.patch_px)
        picked, told = _picked(found.bands, bands, origin)
        self.notes = [f"{origin}: {found.layout} layout; {found.dropped}", *([told] if told else [])]
        self.register_buffer("order", torch.tensor([picked[band] for band in ORDER]), persistent=False)
        name = fitting.vit_name_of(width, origin)
        self.name, self.width = f"{name} with channel groups", width
        model = timm.create_model(
            name, num_classes=0, in_chans=sum(SIZES), embed_layer=GroupPatches, global_pool="token",
            img_size=list(size_px), patch_size=self.patch_px, depth=fitting.depth(state),
        )  # fmt: skip
        self.vit = cast(VisionTransformer, model)
        self._load(state, found, origin)

    def _load(self, state: dict[str, Tensor], found: Recognised, origin: str) -> None:
        for group in range(len(SIZES)):
            for part in ("weight", "bias"):
                state[f"patch_embed.groups.{group}.{part}"] = state.pop(f"patch_embed.{group}.proj.{part}")
        state["pos_embed"] = self._positions(state.pop("pos_embed"), state.pop("channel_embed"))
        fitting.load_all(self.vit, found, state, origin, "Take SatMAE's or SatMAE++'s fMoW-Sentinel checkpoint.")

    def _positions(self, places: Tensor, groups_1Gc: Tensor) -> Tensor:
        """Join places (1, 1 + N, D - c) and groups (1, G, c) to (1, 1 + G N, D); the class token has none."""
        side = int((places.shape[1] - 1) ** 0.5)
        if (side, side) != self.grid:
            self.notes.append(f"positions resampled from {side} x {side} to {self.grid[0]} x {self.grid[1]} patches")
            places = resample_abs_pos_embed(places, list(self.grid), [side, side], num_prefix_tokens=1)
        count, groups = places.shape[1] - 1, groups_1Gc.shape[1]
        of_place = places[:, 1:].repeat(1, groups, 1)
        of_group = groups_1Gc.repeat_interleave(count, dim=1)
        return torch.cat([torch.zeros(1, 1, self.width), torch.cat([of_place, of_group], dim=-1)], dim=1)

    def randomised(self, seed: int) -> None:
        """Draw weights anew, for the untrained encoder beside the trained one; positions stay."""
        for module in self.vit.modules():
            if isinstance(module, nn.LayerNorm):
                module.reset_parameters()
        initialise(self.vit, seed, "encoder")

    def tokens(self, images_BCHW: Tensor) -> Tensor:
        """Encode normalised images: (B, 1 + G N, D), class token first."""
        found: Tensor = self.vit.forward_features(images_BCHW[:, self.order])
        return found

    def features(self, images_BCHW: Tensor, pool: Pool = "mean") -> Tensor:
        """Compute one vector per image: (B, C, H, W) normalised -> (B, D), the mean token or the class token."""
        tokens = self.tokens(images_BCHW)
        return tokens[:, 1:].mean(dim=1) if pool == "mean" else tokens[:, 0]

    def feature_map(self, images_BCHW: Tensor) -> Tensor:
        """Compute the mean of a place's tokens: (B, D, h, w)."""
        patches = self.tokens(images_BCHW)[:, 1:]
        tokens_BGND = patches.reshape(len(patches), len(SIZES), -1, self.width)
        return tokens_BGND.mean(1).transpose(1, 2).reshape(len(patches), self.width, *self.grid)


def _check(state: dict[str, Tensor], found: Recognised, origin: str) -> None:
    sizes = [value.shape[1] for key, value in state.items() if key.startswith("patch_embed.") and value.ndim == 4]
    if tuple(sizes) != SIZES:
        raise UserError(
            f"{origin}: {found.layout} layout with groups of {sizes} bands. Which bands they are is not written in the "
            f"file and known only of the published ones, {list(SIZES)} of fMoW-Sentinel; these cannot be mapped."
        )
    if "norm.weight" not in state:
        raise UserError(
            f"{origin}: {found.layout} layout, {left_over([], ['norm.weight'])}: the pretrained one has it."
        )


def _picked(theirs: Sequence[str], mine: Sequence[str], origin: str) -> tuple[list[int], str]:
    """Find the ten bands among the images': by name, or in order where there are ten that share no name."""
    if set(theirs) <= set(mine):
        rest = [band for band in mine if band not in theirs]
        return [list(mine).index(band) for band in theirs], f"not seen: {', '.join(rest)}" if rest else ""
    if len(mine) == len(theirs) and not set(mine) & set(theirs):
        return list(range(len(theirs))), "ten bands taken in the order " + ", ".join(theirs)
    missing = [band for band in theirs if band not in mine]
    raise UserError(
        f"{origin}: the weights see {', '.join(theirs)}; the images lack {', '.join(missing)}. A group of bands cannot "
        "be left empty; take images with these bands, or weights of RGB."
    )
