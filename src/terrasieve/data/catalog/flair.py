"""FLAIR: land cover of France at 0.2 m. Source: Garioud et al., arXiv:2211.12979 (FLAIR 1), NeurIPS 2023 (FLAIR 2).

Domains (department and year) hold zones of 512 px patches. The eight validation domains are the makers' baseline's.
The makers' names (flair_aerial_train, flair_labels_train, flair_1_aerial_test, ...) and train/, test/ with img and msk
side by side are both read.
"""

from __future__ import annotations

from collections.abc import Iterator

from terrasieve.data.catalog.copy import Copy
from terrasieve.data.catalog.entry import Entry, Item
from terrasieve.data.masks import MaskSettings

CLASSES = (
    "building", "pervious surface", "impervious surface", "bare soil", "water", "coniferous", "deciduous",
    "brushwood", "vineyard", "herbaceous vegetation", "agricultural land", "plowed land", "swimming pool", "snow",
    "clear cut", "mixed", "ligneous", "greenhouse", "other",
)  # fmt: skip
VALIDATION = ("D004", "D014", "D029", "D031", "D058", "D066", "D067", "D077")
IMAGES = {"train": ("flair_aerial_train", "train"), "test": ("flair_1_aerial_test", "flair_2_aerial_test", "test")}
LABELS = {"train": ("flair_labels_train", "train"), "test": ("flair_1_labels_test", "flair_2_labels_test", "test")}


def _items(copy: Copy) -> Iterator[Item]:
    for part in ("train", "test"):
        top, masks = copy.first(*IMAGES[part]), copy.first(*LABELS[part])
        if top is None or masks is None:
            missing = IMAGES[part] if top is None else LABELS[part]
            copy.problems.append(f"there is no folder {' or '.join(missing)}")
            continue
        for domain in copy.folders(top):
            split = "val" if part == "train" and domain[:4] in VALIDATION else part
            for zone in copy.folders(f"{top}/{domain}"):
                folders = f"{top}/{domain}/{zone}/img", f"{masks}/{domain}/{zone}/msk"
                for path in copy.paired(*folders, rename=("MSK", "IMG")):
                    yield Item(path, split=split, mask=f"{folders[1]}/{path.rpartition('/')[2].replace('IMG', 'MSK')}")


ENTRY = Entry(
    name="flair",
    title="FLAIR (2023)",
    kind="segmentation",
    summary="13 (variant 19: 19) land covers in 512 px aerial images of France, RGB, near infrared and elevation",
    classes=CLASSES,
    bands=("red", "green", "blue", "nir", "elevation"),
    gsd_m=0.2,
    size_px=512,
    licence="Etalab Open Licence 2.0",
    citation="Garioud et al., FLAIR: a Country-Scale Land Cover Semantic Segmentation Dataset, NeurIPS Datasets and "
    "Benchmarks 2023, arXiv:2310.13336",
    page="https://ignf.github.io/FLAIR/",
    layout="""
flair/
  flair_aerial_train/D004_2021/Z1_NN/img/IMG_000001.tif ...   (or train/)
  flair_labels_train/D004_2021/Z1_NN/msk/MSK_000001.tif ...   (or train/)
  flair_1_aerial_test/ ...  flair_1_labels_test/ ...          (or flair_2_..., or test/)
""",
    marks=("flair_aerial_train", "flair_labels_train", "flair_1_aerial_test", "train/D004_2021"),
    reader=_items,
    variants=("13", "19"),
    masks={
        "13": MaskSettings(
            classes=(*CLASSES[:12], "other"), values=(*range(1, 13), 19), merge=dict.fromkeys(range(13, 19), 19)
        ),
        "19": MaskSettings(classes=CLASSES, values=tuple(range(1, 20))),
    },
    coordinates="the GeoTIFFs (EPSG:2154)",
    note="Variant 13 takes classes 13 to 19 as other, as the baseline does, whose mIoU leaves other out. Validation: "
    "eight domains. Published: 61,712 patches to train and validate, 15,700 (FLAIR 1) or 16,050 (FLAIR 2) to test.",
)
