"""The protocols end to end on features of known quality, and what is written of them."""

import json
from pathlib import Path

import pytest
import torch

from terrasieve.batch import Batch
from terrasieve.errors import UserError
from terrasieve.evaluate import protocol
from terrasieve.evaluate.metrics import METRICS
from terrasieve.evaluate.protocol import Features, Score, extract, markdown_table, raw_pixels, rich_table, run_protocols
from terrasieve.keyed import generator


def task(quality: float, labels: bool = False) -> Features:
    """300 samples of 4 classes; the class stands out from the noise by ``quality``."""
    draws = generator(0, "test-protocol")
    targets = torch.arange(300) % 4
    features = quality * torch.nn.functional.one_hot(targets, 8) + torch.randn(300, 8, generator=draws)
    if labels:
        targets = torch.stack([targets == 0, targets < 2, targets == 3], 1).float()
    return Features.of(features, targets, ["train", "train", "val", "test", "test"] * 60, classes=3 if labels else 4)


def batch_of(image: torch.Tensor, index: list[int]) -> Batch:
    nowhere = torch.full((len(image),), torch.nan, dtype=torch.float64)
    return Batch(image=image, lon=nowhere, lat=nowhere, time=nowhere, index=torch.tensor(index))


def test_better_features_score_better_and_chance_is_in_the_interval_of_noise() -> None:
    scores = run_protocols({"pretrained": task(5.0), "random init": task(0.0)}, settings={"task": "blobs"})
    assert len(scores) == 2 * 2 * len(METRICS["multiclass"]) and scores[0].settings["task"] == "blobs"
    for score in scores:
        assert score.count == 120 and score.low <= score.value <= score.high
        assert score.encoder != "pretrained" or score.value > 0.95
        chance = "accuracy" in score.metric and score.encoder == "random init"
        assert not chance or score.low <= 0.25 <= score.high
    assert scores == run_protocols({"pretrained": task(5.0), "random init": task(0.0)}, settings={"task": "blobs"})


def test_multilabel_scores() -> None:
    scores = run_protocols({"pretrained": task(5.0, labels=True)})
    assert [s.metric for s in scores[:5]] == ["ap_macro", "ap_micro", "f1_macro", "f1_micro", "f1_weighted"]
    assert min(s.value for s in scores) > 0.9


def test_test_samples_never_change_what_is_fitted() -> None:
    whole = task(1.0)
    changed = Features(**{**vars(whole), "test_ND": whole.test_ND.flip(0) * 9})
    fitted = [[s.settings for s in run_protocols({"x": features}, ["linear"])] for features in (whole, changed)]
    assert fitted[0] == fitted[1] and fitted[0][0]["chosen_on"] == "val"


def test_extract_keeps_the_row_of_every_feature() -> None:
    seen: list[int] = []
    batches = [batch_of(torch.full((2, 3, 4, 4), float(i)), [7 - 2 * i, 6 - 2 * i]) for i in range(3)]
    features, index = extract(lambda image: image.mean((2, 3)), batches, on_batch=lambda b: seen.append(len(b)))
    assert features.shape == (6, 3) and index.tolist() == [7, 6, 5, 4, 3, 2] and seen == [2, 2, 2]
    assert features[:, 0].tolist() == [0, 0, 1, 1, 2, 2] and not features.is_inference()


def test_extract_refuses_nan_and_nothing() -> None:
    broken = batch_of(torch.tensor([1.0, torch.nan]).view(2, 1, 1, 1), [4, 9])
    with pytest.raises(UserError, match=r"1 of 2 images .*rows \[9\]"):
        extract(lambda image: image.flatten(1), [broken])
    with pytest.raises(UserError, match="no images"):
        extract(lambda image: image.flatten(1), [])


def test_raw_pixels_are_means_over_cells() -> None:
    image = torch.rand(2, 4, 48, 32, generator=generator(0, "test-raw"))
    cells = raw_pixels(image, side=16).view(2, 4, 16, 16)
    torch.testing.assert_close(cells[1, 2, 5, 7], image[1, 2, 15:18, 14:16].mean())


def test_scores_come_back_from_json(tmp_path: Path) -> None:
    scores = run_protocols({"raw pixels": task(1.0)}, ["knn"])
    protocol.write_scores(scores, tmp_path / "scores.json")
    assert protocol.read_scores(tmp_path / "scores.json") == scores
    assert [p.name for p in tmp_path.iterdir()] == ["scores.json"]
    with pytest.raises(UserError, match="lacks low"):
        Score.from_json({k: v for k, v in scores[0].to_json().items() if k != "low"})
    for wrong in ("{", json.dumps({"a": 1})):
        (tmp_path / "scores.json").write_text(wrong)
        with pytest.raises(UserError, match="run the evaluation again"):
            protocol.read_scores(tmp_path / "scores.json")


def test_tables_hold_every_figure() -> None:
    scores = [Score("a|b", "knn", "overall_accuracy", 0.5, 0.4, 0.61, 10, {})]
    assert markdown_table(scores) == (
        "| encoder | protocol | overall accuracy |\n| --- | --- | ---: |\n| a\\|b | knn | 50.0 [40.0, 61.0] |\n"
    )
    assert rich_table(scores).row_count == 1 and rich_table([]).row_count == 0


def test_unknown_protocols_and_empty_parts_are_user_errors() -> None:
    with pytest.raises(UserError, match="'kn'; choose from knn, linear"):
        run_protocols({"x": task(1.0)}, ["kn"])
    whole = task(1.0)
    with pytest.raises(UserError, match="0 test samples"):
        run_protocols({"x": Features(**{**vars(whole), "test_ND": whole.test_ND[:0]})})
