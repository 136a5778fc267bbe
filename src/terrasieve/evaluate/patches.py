"""Patches of images with masks: features of a keyed sample of them, and k-nearest-neighbour segmentation.

After the encoder's feature map and ``data.masks``; ``assess`` gives the images. A patch is a cell of the feature map (a
ViT's patch, a cell of a ResNet's last map); what is known of it is the share of each class among its scored pixels. The
most similar patches of training images vote with their shares (``knn``), and the winner is the class of all the pixels
of the patch, so that mIoU counts pixels and is comparable with a segmentation's; a patch has one class, therefore its
ceiling is said beside it. Source: Balazevic et al. 2023 (retrieval of patches for dense tasks); METHODS.md, section 9.

Legend: B images of h x w cells, P patches, D features, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, unfold

from terrasieve.batch import Batch
from terrasieve.errors import UserError
from terrasieve.evaluate import dense
from terrasieve.evaluate.knn import knn_scores
from terrasieve.evaluate.protocol import TEMPERATURE, K, Score
from terrasieve.evaluate.resampled import Made
from terrasieve.keyed import numpy_generator
from terrasieve.nn.backbones import AnyEncoder, TorchvisionEncoder
from terrasieve.nn.encoder import Encoder
from terrasieve.nn.group_channels import GroupEncoder

MOST = 20_000  # patches of the bank, and as many that are classified: neither memory nor time grows with the data
PIXELS = 4  # raw pixels of a patch are averaged to so many a side


@dataclass(frozen=True)
class Patches:
    """Sampled patches.

    Attributes:
        features: of each encoder, (P, D) float32 on the CPU.
        counts_PC: int64, scored pixels of each class; no row is all 0.
        image_P: int64, the image of each.
    """

    features: dict[str, Tensor]
    counts_PC: Tensor
    image_P: Tensor

    def of(self, images: np.ndarray) -> Patches:
        """Return those of some images."""
        chosen = torch.from_numpy(np.isin(self.image_P.numpy(), images))
        return Patches({k: v[chosen] for k, v in self.features.items()}, self.counts_PC[chosen], self.image_P[chosen])


def feature_map(encoder: AnyEncoder, images_BCHW: Tensor) -> Tensor:
    """Compute the last feature map: (B, D, h, w).

    Raises:
        UserError: a backbone whose last layer has no map.
    """
    if isinstance(encoder, Encoder):
        tokens_BND = encoder.encode(images_BCHW)[:, 1:]
        h, w = (side // encoder.patch_px for side in images_BCHW.shape[-2:])
        return tokens_BND.transpose(1, 2).reshape(len(tokens_BND), -1, h, w)
    if isinstance(encoder, GroupEncoder):
        return encoder.feature_map(images_BCHW)
    if isinstance(encoder, TorchvisionEncoder):
        raise UserError(
            f"torchvision:{encoder.name} gives no map of features, as masks need; take timm:{encoder.name}."
        )
    found: Tensor = encoder.vit.forward_features(images_BCHW)  # type: ignore[operator]
    if found.ndim == 4 and found.shape[1] == encoder.vit.num_features:
        return found
    if found.ndim == 4 and found.shape[3] == encoder.vit.num_features:  # Swin and its like
        return found.permute(0, 3, 1, 2)
    raise UserError(
        f"{encoder.name}: its last layer gives {tuple(found.shape[1:])} and no map of features, as masks need."
    )


def raw_map(images_BCHW: Tensor, grid: tuple[int, int]) -> Tensor:
    """Average each cell of a grid to 4 x 4 pixels and flatten them: (B, C * 16, h, w), the map that learned nothing."""
    pooled = adaptive_avg_pool2d(images_BCHW.float(), (grid[0] * PIXELS, grid[1] * PIXELS))
    return unfold(pooled, PIXELS, stride=PIXELS).view(len(pooled), -1, *grid)


def class_counts(mask_BHW: Tensor, grid: tuple[int, int], classes: int) -> Tensor:
    """Count the scored pixels of each class in every cell: (B, h * w, C) int64; 255 is not scored."""
    B, H, W = mask_BHW.shape
    rows, columns = (torch.arange(n, device=mask_BHW.device) * cells // n for n, cells in ((H, grid[0]), (W, grid[1])))
    cell_HW = rows[:, None] * grid[1] + columns
    place = torch.where(mask_BHW < classes, cell_HW * classes + mask_BHW.long(), grid[0] * grid[1] * classes).flatten(1)
    counts = torch.zeros(B, grid[0] * grid[1] * classes + 1, dtype=torch.int64, device=mask_BHW.device)
    counts.scatter_add_(1, place, torch.ones_like(place))
    return counts[:, :-1].view(B, -1, classes)


def sample(
    maps: Callable[[Tensor], dict[str, Tensor]],
    batches: Iterable[Batch],
    classes: int,
    per_image: Callable[[int], int],
    seed: int,
    on_batch: Callable[[Batch], None] | None = None,
) -> Patches:
    """Read images with masks and keep a keyed sample of the patches of each that have a scored pixel.

    Args:
        maps: images -> feature map of each encoder, all of one grid.
        batches: normalised, on the device of the encoders.
        classes: C.
        per_image: patches that are kept of an image, by its row.
        seed: keys the draw, image by image.
        on_batch: called after each.

    Raises:
        UserError: nothing is scored.
    """
    features: dict[str, list[Tensor]] = {}
    counts, images = [], []
    with torch.inference_mode():
        for batch in batches:
            assert batch.mask is not None
            found = maps(batch.image)
            h, w = next(iter(found.values())).shape[-2:]
            count_BNC = class_counts(batch.mask, (h, w), classes)
            for position, row in enumerate(batch.index.tolist()):
                scored = np.flatnonzero(count_BNC[position].sum(1).cpu().numpy())
                drawn = np.sort(numpy_generator(seed, "patches", row).permutation(scored)[: per_image(row)])
                chosen = torch.from_numpy(drawn).to(count_BNC.device)
                counts.append(count_BNC[position, chosen].cpu())
                images.append(torch.full((len(drawn),), row))
                for name, map_BDhw in found.items():
                    own = map_BDhw[position].flatten(1).T[chosen].float().cpu()
                    features.setdefault(name, []).append(own)
            if on_batch is not None:
                on_batch(batch)
    if not sum(len(part) for part in counts):
        raise UserError("The masks have no pixel that is scored; look at them and at masks.ignore.")
    together = {name: torch.cat(parts) for name, parts in features.items()}
    return Patches(together, torch.cat(counts), torch.cat(images))


def budget(parts: Sequence[str], most: int = MOST) -> Callable[[int], int]:
    """Share the patches out evenly over the images of train, and over those of test; other images get none."""
    count = {name: sum(part == name for part in parts) for name in ("train", "test")}
    return lambda row: max(1, most // count[parts[row]]) if parts[row] in count else 0


def score(
    patches: Patches,
    parts: Sequence[str],
    classes: Sequence[str],
    seed: int,
    about: dict[str, Any],
    k: int = K,
    temperature: float = TEMPERATURE,
) -> list[Score]:
    """Segment the test images' patches by k-NN and score the pixels, with intervals over the test images.

    Args:
        patches: of train and test images.
        parts: train, val or test of every image.
        classes: names.
        seed: of the resamples.
        about: what the figures were made with; JSON values.
        k, temperature: of k-NN.

    Returns:
        Per encoder the scores of ``dense.METRICS``; their settings hold k and the ceiling of mIoU.
    """
    rows = {name: np.flatnonzero([part == name for part in parts]) for name in ("train", "test")}
    bank, queries = (patches.of(rows[name]) for name in ("train", "test"))
    if not len(bank.counts_PC) or not len(queries.counts_PC):
        raise UserError(
            f"{len(bank.counts_PC)} train and {len(queries.counts_PC)} test patches are scored; both are needed"
        )
    shares_PC = bank.counts_PC / bank.counts_PC.sum(1, keepdim=True)
    k = min(k, len(shares_PC))
    best = dense.values(confusion(queries, queries.counts_PC.argmax(1)))
    made_with = {
        **about, "k": k, "temperature": temperature, "seed": seed, "train_count": len(rows["train"]),
        "train_patches": len(shares_PC), "test_patches": len(queries.counts_PC), "miou_ceiling": best["miou"],
    }  # fmt: skip
    found: list[Score] = []
    for name in patches.features:
        votes_PC = knn_scores(bank.features[name], shares_PC, queries.features[name], k=k, temperature=temperature)
        found += dense.score(confusion(queries, votes_PC.argmax(1)), classes, Made(name, "knn", seed, made_with))
    return found


def confusion(patches: Patches, said_P: Tensor) -> Tensor:
    """Count the pixels of each true and predicted class, image by image: (n, C, C); a patch is said one class."""
    C = patches.counts_PC.shape[1]
    images, number_P = torch.unique(patches.image_P, return_inverse=True)
    matrices = torch.zeros(len(images) * C, C, dtype=torch.int64)
    matrices.index_add_(0, number_P * C + said_P, patches.counts_PC)  # rows: image and predicted class
    return matrices.view(-1, C, C).transpose(1, 2)


def said(settings: dict[str, Any]) -> str:
    """Say of scores how they came about, for people."""
    return (
        f"{settings['test_patches']:,} test patches, each by the {settings['k']} most similar of "
        f"{settings['train_patches']:,} of {settings['train_count']:,} training images; "
        f"a patch has one class, so mIoU can reach {100 * settings['miou_ceiling']:.1f}"
    )
