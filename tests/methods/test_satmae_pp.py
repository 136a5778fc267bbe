"""SatMAE++: the loss by loops, MAE at 1x, what the encoder sees, a run that reads twice as large, its picture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from safetensors.torch import load_file

from terrasieve import keyed
from terrasieve.batch import Batch
from terrasieve.bench.contenders import Setup
from terrasieve.bench.flops import gflop_per_image
from terrasieve.data.images import from_table
from terrasieve.manifest import read
from terrasieve.methods.mae import MAE, MAESettings
from terrasieve.methods.satmae_pp import SatMAEPP, SatMAEPPSettings, pyramid
from terrasieve.nn.decoder import DecoderSettings
from terrasieve.nn.encoder import Encoder, EncoderSettings
from terrasieve.pretrain import pretrain
from terrasieve.recipe import Recipe
from terrasieve.report import write_report

DECODER = DecoderSettings(depth=1, width=32, heads=4)


def encoder_of(bands: int = 2) -> Encoder:
    return Encoder(EncoderSettings(name="vit_tiny_patch16_224", patch_px=4, depth=1), bands, (8, 12))


def method_of(**changes: Any) -> SatMAEPP:
    return SatMAEPP(SatMAEPPSettings(decoder=DECODER, width=8, **changes), encoder_of())


def batch_of(factor: int = 2, holes: bool = False) -> Batch:
    nowhere = torch.full((3,), torch.nan, dtype=torch.float64)
    image = torch.randn(3, 2, 8 * factor, 12 * factor, generator=keyed.generator(0, "image"))
    valid = None
    if holes:
        valid = torch.rand(3, 8 * factor, 12 * factor, generator=keyed.generator(0, "valid")) > 0.1
        image = torch.where(valid[:, None], image, 0.0)
    return Batch(image, nowhere, nowhere, nowhere, torch.arange(3), valid=valid)


def draw() -> torch.Generator:
    return keyed.generator(0, "mask", 0)


def normalised(values: np.ndarray, real: np.ndarray) -> np.ndarray:
    """One patch, (C, p, p), over its real pixels (p, p)."""
    inside = values[:, real]
    if inside.size < 2:
        return values - (inside.mean() if inside.size else 0)
    return (values - inside.mean()) / np.sqrt(inside.var(ddof=1) + 1e-6)


@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize("scales", [2, 3])
def test_the_loss_is_a_loop(scales: int, holes: bool) -> None:
    method, batch = method_of(scales=scales, finer=0.5), batch_of(2 ** (scales - 1), holes)
    with torch.no_grad():
        output = method(batch, draw())
        levels = pyramid(batch, scales)
        chosen = method.select(batch, torch.zeros(3, 6, 32), draw())
        patches = torch.nn.functional.unfold(levels[0].image, 4, stride=4).transpose(1, 2)
        tokens = method.encoder(patches.gather(1, chosen.kept_BK[..., None].expand(-1, -1, 32)), chosen.kept_BK)
        coarse, larger = method.decoder(tokens, *chosen)
    predicted = [torch.nn.functional.fold(coarse.transpose(1, 2), (8, 12), 4, stride=4), *larger]
    losses = []
    for n, (guess, level) in enumerate(zip(predicted, levels, strict=True)):
        side, values = 4 * 2**n, []
        truth = level.image.double().numpy()
        valid = np.ones((3, *truth.shape[2:]), bool) if level.valid is None else level.valid.numpy()
        for b in range(3):
            for place in chosen.targets_BM[b].tolist() if n == 0 else range(6):
                rows, columns = (slice(side * i, side * i + side) for i in divmod(place, 3))
                real = valid[b, rows, columns]
                error = guess[b, :, rows, columns].double().numpy() - normalised(truth[b, :, rows, columns], real)
                values.append(((error**2 if n == 0 else np.abs(error)) * real).mean())
        losses.append(np.mean(values))
        assert float(output.metrics[f"loss_{2**n}x"]) == pytest.approx(losses[-1], rel=1e-4)
    assert float(output.loss) == pytest.approx(losses[0] + 0.5 * sum(losses[1:]), rel=1e-4)


def test_at_1x_it_is_mae_on_the_image_averaged_down() -> None:
    method, batch = method_of(), batch_of()
    plain = MAE(MAESettings(decoder=DECODER), encoder_of())
    small = replace(batch, image=batch.image.view(3, 2, 8, 2, 12, 2).mean((3, 5)))
    assert torch.allclose(method(batch, draw()).metrics["loss_1x"], plain(small, draw()).loss, atol=1e-6)


def test_detail_that_the_encoder_does_not_see_is_a_target_only() -> None:
    method, batch = method_of(), batch_of()
    checks = torch.ones(16, 24)
    checks[::2, ::2] = checks[1::2, 1::2] = -1
    detailed = replace(batch, image=batch.image + checks)
    a, b = (method(x, draw(), picture=True) for x in (batch, detailed))
    assert torch.allclose(a.metrics["loss_1x"], b.metrics["loss_1x"], atol=1e-5)
    assert torch.allclose(a.embeddings, b.embeddings, atol=1e-5)  # type: ignore[arg-type]
    assert abs(float(a.metrics["loss_2x"] - b.metrics["loss_2x"])) > 1e-3


def test_a_coarse_pixel_is_real_where_all_of_it_is() -> None:
    batch = batch_of(4, holes=True)
    levels = pyramid(batch, 3)
    for coarse, fine in pairwise(levels):
        assert coarse.valid is not None and fine.valid is not None
        assert torch.equal(coarse.valid, fine.valid.view(3, *coarse.valid.shape[1:2], 2, -1, 2).all(4).all(2))
        assert not coarse.image.masked_select(~coarse.valid[:, None]).any()
    everywhere = batch.valid.view(3, 8, 4, 12, 4).all(4).all(2)  # type: ignore[union-attr]
    mean = batch.image.view(3, 2, 8, 4, 12, 4).mean((3, 5))
    assert torch.allclose(levels[0].image, torch.where(everywhere[:, None], mean, 0.0), atol=1e-6)


def test_cost_is_recorded() -> None:
    assert gflop_per_image("satmae_pp", Setup("base", "fp32", "cpu", 224, 1)) == pytest.approx(81.24, abs=0.01)


def test_a_run_reads_twice_as_large_draws_both_scales_and_leaves_an_encoder_of_1x(
    tiny: Callable[..., Recipe], small_manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, ...]] = []
    forward = SatMAEPP.forward

    def watched(self: SatMAEPP, batch: Batch, *args: Any, **more: Any) -> Any:
        seen.append(tuple(batch.image.shape))
        return forward(self, batch, *args, **more)

    monkeypatch.setattr(SatMAEPP, "forward", watched)
    told: list[str] = []
    method = {"name": "satmae_pp", "width": 8, "decoder": DECODER.model_dump()}
    settings = tiny(steps=3, image={"size_px": 24}, method=method)
    pretrain(settings, tmp_path / "run", on_note=told.append)
    assert set(seen) == {(4, 4, 48, 48), (6, 4, 48, 48)}
    assert load_file(tmp_path / "run" / "weights.safetensors")["pos_embed"].shape[1] == 1 + 9
    drawn = Image.open(next((tmp_path / "run" / "pictures").glob("*.png")))
    factor = -(-720 // (5 * 52))
    assert drawn.size == (5 * 52 * factor, 6 * 52 * factor)
    assert any("24 of 24 images" in note and "48 px" in note for note in told), told  # they are of 40 px
    assert "prediction, 2x" in write_report(tmp_path / "run").read_text()
    assert len(from_table(read(small_manifest), None)) == 24


def test_mistakes_are_named() -> None:
    with pytest.raises(ValidationError, match="scales"):
        SatMAEPPSettings(scales=4)
    with pytest.raises(ValidationError, match="width"):
        SatMAEPPSettings(width=6)
    with pytest.raises(ValueError, match=r"\(8, 12\) px are not 2 times"):
        method_of()(batch_of(1), draw())
