"""Views: what is drawn is keyed, geometry is exact where it can be, colours are their definitions."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from scipy.ndimage import gaussian_filter

from terrasieve import keyed
from terrasieve.batch import Batch, Rows
from terrasieve.methods.views import SETS, Views, ViewSettings, _blur, draw_views


def batch_of(count: int = 6, side: int = 24, bands: int = 5) -> Batch:
    nowhere = torch.full((count,), torch.nan, dtype=torch.float64)
    image = torch.randn(count, bands, side, side, generator=keyed.generator(0, "test"))
    return Batch(image, nowhere, nowhere, nowhere, torch.arange(count))


def draw(step: int = 0) -> torch.Generator:
    return keyed.generator(0, "mask", step)


WHOLE = {"crop_scale": (1.0, 1.0), "crop_ratio": (1.0, 1.0)}


@pytest.mark.parametrize("name", SETS)
def test_views_are_keyed_by_step_and_place_in_the_global_batch(name: str) -> None:
    whole = replace(batch_of(), rows=Rows(0, 6))
    views = draw_views(whole, draw(3), SETS[name], 16, 2)
    assert views.shape == (2, 6, 5, 16, 16) and views.isfinite().all()
    assert torch.equal(views, draw_views(whole, draw(3), SETS[name], 16, 2))
    assert not torch.equal(views, draw_views(whole, draw(4), SETS[name], 16, 2))
    assert not torch.equal(views[0], views[1])
    parts = [draw_views(whole.part(i, i + 3), draw(3), SETS[name], 16, 2) for i in (0, 3)]
    torch.testing.assert_close(torch.cat(parts, dim=1), views)


def test_flips_and_turns_are_the_eight_of_the_square_and_all_occur() -> None:
    batch = batch_of(64)
    views = draw_views(batch, draw(), ViewSettings(**WHOLE), 24, 1)[0]
    seen = set()
    for image, view in zip(batch.image, views, strict=True):
        same = [
            (k, m)
            for k in range(4)
            for m in (False, True)
            if torch.allclose(torch.rot90(image.flip(-1) if m else image, k, (-2, -1)), view, atol=1e-4)
        ]
        assert len(same) == 1
        seen.add(same[0])
    assert len(seen) == 8
    still = draw_views(batch, draw(), ViewSettings(**WHOLE, flips=False, turns=False), 24, 1)[0]
    torch.testing.assert_close(still, batch.image, atol=1e-4, rtol=0)


def test_crops_have_the_asked_area_and_stay_inside() -> None:
    """A ramp tells where a pixel comes from: the view's spread is the crop's width and height."""
    ramp = torch.linspace(-1 + 1 / 64, 1 - 1 / 64, 64)
    image = torch.stack([ramp.expand(64, 64), ramp[:, None].expand(64, 64)]).expand(200, 2, 64, 64)
    nowhere = torch.full((200,), torch.nan, dtype=torch.float64)
    batch = Batch(image, nowhere, nowhere, nowhere, torch.arange(200))
    still = ViewSettings(crop_scale=(0.2, 0.6), flips=False, turns=False)
    views = draw_views(batch, draw(), still, 32, 1)[0]
    span = (views[..., -1, -1] - views[..., 0, 0]) / (2 - 2 / 32)  # width and height of the crop, of 1
    area, ratio = span[:, 0] * span[:, 1], span[:, 0] / span[:, 1]
    assert 0.19 < area.min() < 0.25 and 0.55 < area.max() < 0.62
    assert 0.74 < ratio.min() < 0.8 and 1.25 < ratio.max() < 1.35
    assert views.abs().max() <= 1


def test_colours_are_their_definitions() -> None:
    batch = batch_of(200)
    still = {**WHOLE, "flips": False, "turns": False}
    plain = draw_views(batch, draw(), ViewSettings(**still), 24, 1)[0]
    bright = draw_views(batch, draw(), ViewSettings(**still, brightness=0.1), 24, 1)[0] - plain
    assert bright.flatten(1).std(1).max() < 1e-5, "one shift for all bands and pixels"
    assert -0.1 <= bright.min() < -0.09 and 0.09 < bright.max() <= 0.1
    hard = draw_views(batch, draw(), ViewSettings(**still, contrast=0.3), 24, 1)[0]
    factor = hard.std(dim=(2, 3)) / plain.std(dim=(2, 3))
    assert 0.7 <= factor.min() < 0.72 and 1.28 < factor.max() <= 1.3001
    torch.testing.assert_close(hard.mean(dim=(2, 3)), plain.mean(dim=(2, 3)))
    grey = draw_views(batch, draw(), ViewSettings(**still, grey=0.5), 24, 1)[0]
    flat = (grey - grey[:, :1]).abs().amax(dim=(1, 2, 3)) == 0
    assert 70 < flat.sum() < 130
    torch.testing.assert_close(grey[flat][:, 0], plain[flat].mean(1))
    torch.testing.assert_close(grey[~flat], plain[~flat])


def test_blur_is_scipys() -> None:
    image = torch.randn(3, 2, 20, 20, generator=keyed.generator(0, "test"), dtype=torch.float64)
    deviations = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    ours = _blur(image, deviations, 6)
    for k, deviation in enumerate(deviations.tolist()):
        theirs = gaussian_filter(image[k].numpy(), (0, deviation, deviation), mode="mirror", radius=(0, 6, 6))
        torch.testing.assert_close(ours[k], torch.from_numpy(theirs), atol=1e-9, rtol=0)


def test_large_images_are_averaged_before_small_views() -> None:
    """Fine noise of a large image must not alias into a local crop."""
    batch = batch_of(8, side=256, bands=1)
    view = draw_views(batch, draw(), ViewSettings(**WHOLE), 16, 1)
    assert view.std() < 0.25


def test_sets_are_given_by_name_or_switch_by_switch() -> None:
    read = TypeAdapter(Views).validate_python
    assert read("standard") == SETS["standard"] and read({"grey": 0.3}).grey == 0.3
    with pytest.raises(ValidationError):
        read("colourful")
