"""Judging pairs: dHash against its definition, orientations, alignment, and groups against a naive loop."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from terrasieve import keyed
from terrasieve.curate import canonical, hashing, judge
from terrasieve.curate.agreement import agreement, normalised, product, turning
from terrasieve.curate.judge import VERDICTS, JudgeSettings


def scenes(count: int, seed: int = 0, cells: int = 9, side: int = 128) -> np.ndarray:
    """Random smooth images (n, side, side) uint8."""
    draw = keyed.numpy_generator(seed, "test_judge")
    small = draw.integers(0, 256, (count, cells, cells), dtype=np.uint8)
    return np.stack([np.asarray(Image.fromarray(s).resize((side, side), Image.Resampling.BICUBIC)) for s in small])


def thumbs(images: np.ndarray) -> np.ndarray:
    return np.stack([hashing.thumbnail(image) for image in images])


def turned(image: np.ndarray, orientation: int) -> np.ndarray:
    quarters, mirrored = hashing.ORIENTATIONS[orientation]
    image = np.rot90(image, quarters)
    return image[:, ::-1] if mirrored else image


def noisy(images: np.ndarray, seed: int = 1) -> np.ndarray:
    noise = keyed.numpy_generator(seed, "noise").normal(0, 3, images.shape)
    return np.clip(images + noise, 0, 255).astype(np.uint8)


def test_dhash_is_that_of_hashing() -> None:
    images = thumbs(scenes(20))
    found = np.empty(64, bool)
    for image, wanted in zip(images, hashing.hashes(images).dhash, strict=True):
        judge._dhash(image.ravel(), np.arange(1024), found)
        bits = np.array([wanted >> np.uint64(63 - k) & np.uint64(1) for k in range(64)], bool)
        assert (found != bits).sum() <= 1, "equal means may round to either side"


@pytest.mark.parametrize("orientation", range(8))
def test_a_turned_copy_is_found_and_the_turn_undoes_it(orientation: int) -> None:
    a = thumbs(scenes(12))
    undo = turning()[orientation]
    b = np.zeros_like(a).reshape(12, -1)
    b[:, undo] = noisy(a).reshape(12, -1)  # turning b so gives a
    b = b.reshape(-1, 32, 32)
    np.testing.assert_array_equal(turned(b[0], orientation), noisy(a)[0])
    both = np.concatenate([a, b])
    phash, n = hashing.hashes(both).phash, np.arange(12)
    found = judge.judge_pairs(phash, both, n, n + 12, JudgeSettings())
    assert [VERDICTS[v] for v in found.verdict] == ["duplicate"] * 12
    assert (found.orientation == orientation).all() and (found.distance <= 8).all() and (found.correlation > 0.97).all()
    shared = canonical.turns(a), canonical.turns(b)
    for i in range(12):
        names = [
            {phash[k, t] for t in range(8) if turns[i] >> t & 1} for k, turns in ((i, shared[0]), (i + 12, shared[1]))
        ]
        near = min(int(np.bitwise_count(x ^ y)) for x in names[0] for y in names[1])
        assert near <= 8, "the canonical orientations meet"
    plain = judge.judge_pairs(phash, both, n, n + 12, JudgeSettings(rotations=False))
    assert (plain.orientation == 0).all() and (plain.verdict == 1).all() == (orientation == 0)


def test_a_canonical_orientation_is_the_same_for_all_eight() -> None:
    for image in thumbs(scenes(30, seed=5)):
        turns = [np.ascontiguousarray(turned(image, o)) for o in range(8)]
        flags = canonical.turns(np.stack(turns))
        hashes = hashing.hashes(np.stack(turns)).phash
        names = [{int(hashes[o, t]) for t in range(8) if flags[o] >> t & 1} for o in range(8)]
        assert all(names[0] == other for other in names[1:]) and 1 <= len(names[0]) <= 8


def pair_agreement(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    one, other = np.empty(1024, np.float32), np.empty(1024, np.float32)
    normalised(a.ravel(), np.arange(1024), one)
    normalised(b.ravel(), np.arange(1024), other)
    return float(product(one, other)), float(agreement(one, other))


def test_plain_correlation_is_numpys() -> None:
    a, b = thumbs(scenes(2))
    assert pair_agreement(a, b)[0] == pytest.approx(np.corrcoef(a.ravel(), b.ravel())[0, 1], abs=1e-5)


@pytest.mark.parametrize(("left", "top", "side"), [(0, 0, 250), (3, 2, 250), (6, 7, 243), (4, 0, 252)])
def test_a_crop_of_a_few_percent_is_aligned(left: int, top: int, side: int) -> None:
    for image in scenes(10, cells=24, side=256):
        part = image[top : top + side, left : left + side]
        plain, aligned = pair_agreement(*(hashing.thumbnail(np.ascontiguousarray(i)) for i in (image, part)))
        assert aligned > max(0.93, plain - 1e-6)
        if side < 250:
            assert plain < 0.95, "or the test shows nothing"


def test_different_images_do_not_align() -> None:
    images = thumbs(scenes(40, cells=20))
    found = [pair_agreement(a, b)[1] for a, b in zip(images[:20], images[20:], strict=True)]
    assert max(found) < 0.6


def naive_groups(phash: np.ndarray, images: np.ndarray, ends: list[int], apart: set[tuple[int, int]]) -> list[int]:
    """Who stays in place of each image: itself, or the nearest kept before it that is a duplicate."""
    settings, keeper, start = JudgeSettings(), list(range(len(images))), 0
    for end in ends:
        for m in range(start, end):
            candidates = []
            for k in range(start, m):
                bits = min(int(np.bitwise_count(phash[k, 0] ^ phash[m, o])) for o in range(8))
                if keeper[k] == k and bits <= 8 and (k, m) not in apart:
                    candidates.append((bits, k))
            for _, k in sorted(candidates):
                one = np.array([k]), np.array([m])
                if judge.judge_pairs(phash, images, *one, settings).verdict[0] == 1:
                    keeper[m] = k
                    break
        start = end
    return keeper


def test_groups_are_judged_as_a_naive_loop_does() -> None:
    images = thumbs(scenes(20, seed=3))
    draw = keyed.numpy_generator(2, "test_judge")
    pick = draw.integers(0, 20, 60)
    copies = np.stack(
        [
            turned(noisy(images[i : i + 1], int(i))[0], int(o))
            for i, o in zip(pick, draw.integers(0, 8, 60), strict=True)
        ]
    )
    phash, ends, n = hashing.hashes(copies).phash, np.array([25, 26, 60]), len(copies)
    apart = {(k, m) for k in range(25) for m in range(k + 1, 25) if pick[k] == pick[m] and (k + m) % 3 == 0}
    keys = np.sort(np.array([k * n + m for k, m in apart], np.int64))
    found = judge.judge_groups(ends, phash, copies, keys, JudgeSettings())
    keeper = np.where(found.verdict == 1, found.other, np.arange(n)).tolist()
    assert keeper == naive_groups(phash, copies, ends.tolist(), apart)
    assert sum(k != i for i, k in enumerate(keeper)) > 10
    assert all(pick[i] == pick[k] for i, k in enumerate(keeper))


def test_the_band_between_is_for_review() -> None:
    """The same low frequencies, other details."""
    base = scenes(1, seed=8, cells=6)[0].astype(float)
    fine = scenes(2, seed=9, cells=30).astype(float) - 128
    images = thumbs(np.clip(128 + (base - 128) * 0.6 + fine * 0.45, 0, 255).astype(np.uint8))
    wide = JudgeSettings(distance=64)
    found = judge.judge_pairs(hashing.hashes(images).phash, images, np.array([0]), np.array([1]), wide)
    strict = JudgeSettings(
        distance=64,
        accept=float(found.correlation[0]) + 0.01,
        review=float(found.correlation[0]) - 0.01,
        accept_bits=0,
        reject_bits=64,
    )
    again = judge.judge_pairs(hashing.hashes(images).phash, images, np.array([0]), np.array([1]), strict)
    assert VERDICTS[again.verdict[0]] == "review"
    low = strict.model_copy(update={"review": float(found.correlation[0]) + 0.005})
    assert (
        VERDICTS[judge.judge_pairs(hashing.hashes(images).phash, images, np.array([0]), np.array([1]), low).verdict[0]]
        == "different"
    )
