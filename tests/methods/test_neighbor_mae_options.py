"""NeighborMAE's options by naive loops: fewer targets, ground encoded once, richness, pixels without data."""

from __future__ import annotations

from dataclasses import replace

import torch
from small_neighbor_mae import batch_of, draw, method_of, shifted

from terrasieve.methods.neighbor_mae import (
    cross_project,
)
from terrasieve.methods.neighbor_tokens import ground_once, least_given_away
from terrasieve.methods.visibility import normalised
from terrasieve.nn.patches import patchify


def test_targets_are_where_neighbours_give_least_away() -> None:
    """The neighbour shows the right half of the same ground: targets lie in the left half, and where it has changed."""
    method = method_of(predict=0.25)
    batch = batch_of(shifted(0.5, 0.5))
    assert batch.neighbours is not None
    changed = batch.neighbours.clone()
    changed[1, 0, :, :16, :16] += torch.randn(3, 16, 16, generator=draw()) * 5
    seen = method.look(replace(batch, neighbours=changed))
    keep = torch.zeros(2, 128, dtype=torch.bool)
    keep[:, 64:] = True
    ids = least_given_away(seen, keep, 40, torch.rand(2, 128, generator=draw()), rich=False)
    for row in (0, 1):
        left = {n for n in range(64) if n % 8 < 4}
        chosen = set(ids[row].tolist())
        assert len(chosen) == 40 and chosen <= set(range(64)) and left <= chosen
        assert ({4, 5, 12, 13} <= chosen) == (row == 1), (
            "the changed corner of the neighbour is the middle of the image"
        )
    loss = method(batch, draw())
    assert loss.loss.isfinite()


def test_ground_that_has_not_changed_is_encoded_once() -> None:
    method = method_of(images=3, unique=0.5)
    boxes = torch.cat([shifted(0.5, 0.5), shifted(1.0, 1.0)[:, 1:]], dim=1)
    batch = batch_of(boxes)
    assert batch.neighbours is not None
    changed = batch.neighbours.clone()
    changed[1, 0] += 30 * torch.randn(3, 64, 64, generator=draw())
    seen = method.look(replace(batch, neighbours=changed))
    keep = torch.rand(2, 192, generator=draw()) < 0.5
    found = ground_once(seen, keep, 0.5).view(2, 3, 64)
    deviation = normalised(seen.images, 8)[2]
    for b in range(2):
        expected = keep.view(2, 3, 64)[b].clone()
        for k in (1, 2):
            given = torch.zeros(64, 64, dtype=torch.bool)
            for j in range(k):
                pair = [k, j]
                warped, shown = cross_project(
                    seen.images[b : b + 1, pair], torch.ones(1, 2, 64, 64), boxes[b : b + 1, pair]
                )
                same = ((warped[0, 0] - seen.images[b, k]) / deviation[b, k]).square().mean(0) < 0.5
                given |= (shown[0, 0] > 0) & same
            share = patchify(given[None, None].float(), 8)[0].mean(-1)
            expected[k] &= share < 0.5
        assert torch.equal(found[b], expected)
    kept = keep.view(2, 3, 64)
    # In the first group the second image's left half is the first one's right half
    assert not found[0, 1].view(8, 8)[:, :4].any() and kept[0, 1].view(8, 8)[:, :4].any()
    assert torch.equal(found[0, 0], kept[0, 0]) and torch.equal(
        found[0, 1].view(8, 8)[:, 4:], kept[0, 1].view(8, 8)[:, 4:]
    )
    assert torch.equal(found[1, 1], kept[1, 1]), "what has changed is encoded again"
    total = float(method(batch, draw()).metrics["encoded"])
    assert total < float(method_of(images=3)(batch, draw()).metrics["encoded"])


def test_richness_pools_the_group() -> None:
    """A flat image beside a rich one: the group's tokens go to the rich one."""
    method = method_of(policy="hog", mask=(0.75, 0.75))
    batch = batch_of(shifted(0.2), noise=0.5)
    batch = replace(batch, image=torch.zeros_like(batch.image), progress=0.5)
    keep, total = method.choose(method.look(batch), batch, torch.rand(1, 128, generator=draw()))
    assert total == int(keep.sum()) == 32
    assert int(keep[0, 64:].sum()) >= 16


def test_pixels_without_data_show_nothing_and_do_not_count() -> None:
    method, batch = method_of(), batch_of(shifted(0.0), noise=0.2)
    assert batch.neighbours is not None
    valid = torch.ones(1, 64, 64, dtype=torch.bool)
    valid[:, :, :30] = False
    empty = torch.zeros(1, 1, 64, 64, dtype=torch.bool)
    losses = []
    for fill in (0.0, 9.0):
        image = torch.where(valid[:, None], batch.image, fill)
        losses.append(method(replace(batch, image=image, valid=valid, neighbours_valid=empty), draw(), picture=True))
    assert losses[0].picture["shown"][0].sum() == 0, "an empty neighbour shows nothing"
    assert losses[0].picture["weight"][0, :, :30].sum() == 0
    assert not losses[0].picture["kept"][0].view(8, 8)[:, :3].any(), "no token is spent on nothing"
    keep = losses[0].picture["kept"][0].view(8, 8)
    assert losses[0].picture["shown"][1].sum() <= keep[:, 3:].sum() * 64
    assert all(output.loss.isfinite() for output in losses)
