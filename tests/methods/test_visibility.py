"""Frames and visibility of neighbouring images: the recorded numbers, naive loops, a cross at a known place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from terrasieve.methods.neighbor_mae import (  # the public names
    corner_embedding,
    cross_project,
    loss_weight,
    mask_ratio,
    pair_iou,
    patch_corners,
    shared_frame,
)
from terrasieve.methods.visibility import normalised, weighted_loss

CASE = json.loads((Path(__file__).parents[1] / "fixtures" / "neighbor.json").read_text())["cases"][0]
SEEN = {name: torch.tensor(value) for name, value in CASE.items() if isinstance(value, list)}
BOXES, VISIBLE = SEEN["boxes_ltrb"], SEEN["visible_mask"]


def close(ours: torch.Tensor, recorded: torch.Tensor) -> None:
    torch.testing.assert_close(ours, recorded, atol=1e-4, rtol=0)


def test_recorded_geometry() -> None:
    close(pair_iou(BOXES), SEEN["iou"][:, 0])
    close(mask_ratio(BOXES), SEEN["mask_ratio"][:, 0])
    corners = patch_corners(BOXES, CASE["image_px"] // CASE["patch_px"])
    close(corners, SEEN["patch_corners_ltrb"])
    close(corner_embedding(corners, CASE["embed_dim"]), SEEN["position_embedding"])


def test_recorded_projection_weight_and_loss() -> None:
    pixels, shown = cross_project(SEEN["images"], VISIBLE, BOXES)
    close(pixels, SEEN["neighbour_projected"])
    assert torch.equal(shown, SEEN["neighbour_visible"])
    given = (SEEN["prediction"], SEEN["images"], VISIBLE, BOXES, CASE["patch_px"])
    close(loss_weight(*given), SEEN["loss_weight"])
    assert weighted_loss(*given).item() == pytest.approx(CASE["weighted_loss"], abs=1e-5)


def test_frames_keep_what_they_promise() -> None:
    footprints = torch.tensor([[[500.0, 900.0, 1140.0, 260.0], [820.0, 580.0, 1460.0, -60.0]]])
    axes, isotropic, metres = (shared_frame(footprints, kind) for kind in ("axes", "isotropic", "metres"))
    for frame in (axes, isotropic, metres):
        assert frame[..., 0].min() == 0 and frame[..., 3].min() == 0
        close(pair_iou(frame), pair_iou(footprints))
    assert axes[..., 2].max() == 32 and axes[..., 1].max() == 32
    width, height = isotropic[..., 2] - isotropic[..., 0], isotropic[..., 1] - isotropic[..., 3]
    close(width, height)
    close(metres[..., 2] - metres[..., 0], torch.full((1, 2), 640 / 80))
    far = footprints + torch.tensor([[[0.0] * 4, [5000.0] * 4]])
    assert pair_iou(far).item() == 0 and mask_ratio(far).item() == 0.75
    assert pair_iou(footprints[:, :1].expand(1, 2, 4)).item() == 1


def test_a_cross_lands_where_the_coordinates_say() -> None:
    """Two crops of one scene, 24 px a side, shifted by (5, 3) px: a pixel of one is found in the other's frame."""
    scene = torch.zeros(40, 40)
    scene[20, 15] = 1.0
    images = torch.stack([scene[4:28, 2:26], scene[7:31, 7:31]])[None, :, None]
    footprints = torch.tensor([[[2.0, -4.0, 26.0, -28.0], [7.0, -7.0, 31.0, -31.0]]])
    for kind in ("axes", "isotropic", "metres"):
        pixels, shown = cross_project(images, torch.ones(1, 2, 24, 24), shared_frame(footprints, kind))
        torch.testing.assert_close(pixels[0, 0, 0, 3:, 5:], images[0, 0, 0, 3:, 5:], atol=1e-4, rtol=0)
        assert (pixels[0, 0, 0] > 0.99).nonzero().tolist() == [[16, 13]]
        assert shown[0, 0].sum() == 21 * 19


def test_weight_of_three_images_is_a_naive_loop() -> None:
    draw = torch.Generator().manual_seed(0)
    images, prediction = torch.randn(2, 3, 2, 16, 16, generator=draw), torch.randn(2, 3, 2, 16, 16, generator=draw)
    visible = (torch.rand(2, 3, 16, 16, generator=draw) < 0.3).int()
    corner = torch.rand(2, 3, 2, generator=draw) * 10
    boxes = torch.stack([corner[..., 0], corner[..., 1] + 20, corner[..., 0] + 20, corner[..., 1]], -1)
    target, mean, deviation = normalised(images, 4)
    found = loss_weight(prediction, images, visible, boxes, 4)
    for b in range(2):
        for k in range(3):
            raw = torch.ones(16, 16)
            for shift in (1, 2):
                pixels, shown = cross_project(images, visible, boxes, shift)
                for i in range(16):
                    for j in range(16):
                        if shown[b, k, i, j]:
                            near = (pixels[b, k, :, i, j] - mean[b, k, :, i, j]) / deviation[b, k, :, i, j]
                            top = (near - target[b, k, :, i, j]).square().mean()
                            ratio = top / (prediction[b, k, :, i, j] - target[b, k, :, i, j]).square().mean()
                            raw[i, j] = min(raw[i, j], ratio.clamp(0, 1))
            for i, j in ((0, 0), (7, 9), (15, 3), (8, 8)):
                window = raw[max(i - 4, 0) : i + 5, max(j - 4, 0) : j + 5].mean().item()
                assert found[b, k, i, j].item() == pytest.approx(0 if visible[b, k, i, j] else window, abs=1e-5)


def test_gradient_reaches_the_prediction_alone_and_zero_error_is_finite() -> None:
    prediction = normalised(SEEN["images"], CASE["patch_px"])[0].clone().requires_grad_()
    loss = weighted_loss(prediction, SEEN["images"], VISIBLE, BOXES, CASE["patch_px"])
    loss.backward()
    assert loss.item() == 0 and torch.isfinite(prediction.grad).all()
    assert not loss_weight(prediction, SEEN["images"], VISIBLE, BOXES, CASE["patch_px"]).requires_grad


def test_embedding_refuses_other_widths() -> None:
    with pytest.raises(ValueError, match="dim 20"):
        corner_embedding(torch.zeros(1, 4), 20)
