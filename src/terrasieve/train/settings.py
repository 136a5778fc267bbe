"""Settings of a training run, beside the loop that reads them; ``recipe.Recipe`` adds the run's name and data."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from terrasieve.data.augment import ImageSettings
from terrasieve.data.batches import check_size
from terrasieve.data.boxes import BoxSettings
from terrasieve.data.loader import LoaderSettings
from terrasieve.data.masks import MaskSettings
from terrasieve.data.pairs import PairSettings
from terrasieve.methods import AdapterSettings, MethodSettings
from terrasieve.methods.regularisers import GeographySettings
from terrasieve.methods.siamese import SiameseSettings
from terrasieve.nn.encoder import EncoderSettings
from terrasieve.section import Section


class OptimSettings(Section):
    """The optimiser and its schedule; the defaults are MAE's, with SelectiveMAE's clipping (METHODS.md, sections 1, 3).

    Attributes:
        name: ``adamw``; ``adam``; ``sgd`` with momentum; ``lars``, for large batches.
        base_lr: learning rate for a batch of 256; scaled by batch size / 256 and by the method's own factor.
        min_lr: where the cosine ends, as a share of the peak.
        warmup: share of the steps over which the rate rises linearly.
        weight_decay: on weights only, not on norms, biases and tokens.
        betas: of AdamW and Adam.
        momentum: of SGD and LARS.
        trust: of LARS, the rate as a share of a weight's own length.
        clip: largest gradient norm; None = no clipping.
        non_finite: what to do when a gradient is not finite: leave the step out and count it, or stop.
    """

    name: Literal["adamw", "adam", "sgd", "lars"] = "adamw"
    base_lr: float = Field(default=1.5e-4, gt=0)
    min_lr: float = Field(default=0.0, ge=0, le=1)
    warmup: float = Field(default=0.075, ge=0, lt=1)
    weight_decay: float = Field(default=0.05, ge=0)
    betas: tuple[float, float] = (0.9, 0.95)
    momentum: float = Field(default=0.9, gt=0, lt=1)
    trust: float = Field(default=0.001, gt=0)
    clip: float | None = Field(default=1.0, gt=0)
    non_finite: Literal["skip", "stop"] = "skip"


class LogSettings(Section):
    """How often things are written, in steps; the last step is always written.

    Attributes:
        every: loss, rate and throughput.
        picture_every: a reconstruction picture; 0 = only at the end.
        checkpoint_every: a checkpoint.
        keep_checkpoints: how many are kept.
        wandb: project to log to as well; needs the extra ``terrasieve[wandb]``.
    """

    every: int = Field(default=10, ge=1)
    picture_every: int = Field(default=100, ge=0)
    checkpoint_every: int = Field(default=100, ge=1)
    keep_checkpoints: int = Field(default=2, ge=1)
    wandb: str | None = None


def _needs_vit(method: str, encoder: EncoderSettings) -> None:
    if encoder.patch_px == 0:
        raise ValueError(
            f"method {method} works on the patches of a ViT, and encoder.name {encoder.name} is none; use e.g. "
            "vit_small_patch16_224, or one of the contrastive methods"
        )


class LoopSettings(Section):
    """What every run of the loop has, whatever it trains.

    Attributes:
        seed: of weights, order, augmentation and masks.
        steps: optimiser steps.
        batch_size: images per step, over all processes.
        accumulate: micro-batches per step, to fit memory; the result is the same up to rounding.
        precision: ``auto`` = bf16 where the hardware computes in it, else fp32.
        device: ``auto`` = CUDA when there is one.
        parallel: with several processes (torchrun): replicate (DDP) or shard (FSDP2) the model.
        compile: compile each block; ``auto`` = on CUDA.
    """

    seed: int = 0
    steps: int = Field(gt=0)
    batch_size: int = Field(default=64, gt=0)
    accumulate: int = Field(default=1, gt=0)
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    parallel: Literal["ddp", "fsdp"] = "ddp"
    compile: Literal["auto", "on", "off"] = "auto"
    image: ImageSettings = ImageSettings()
    encoder: EncoderSettings = EncoderSettings()
    optim: OptimSettings = OptimSettings()
    loader: LoaderSettings = LoaderSettings()
    log: LogSettings = LogSettings()

    @model_validator(mode="after")
    def _fits(self) -> Self:
        height, width = self.image.shape_px
        p = self.encoder.patch_px
        if p and (height % p or width % p):
            raise ValueError(
                f"encoder.patch_px: a patch of {p} px does not divide image.size_px {height} x {width}; "
                f"use a multiple of {p}"
            )
        if self.parallel == "fsdp" and self.optim.name in ("sgd", "lars"):
            raise ValueError(f"optim.name {self.optim.name} does not go with parallel fsdp; use ddp, or adamw or adam")
        if self.batch_size % self.accumulate:
            raise ValueError(f"accumulate {self.accumulate} does not divide batch_size {self.batch_size}")
        if self.loader.lanes and self.batch_size % self.loader.lanes:
            raise ValueError(f"loader.lanes {self.loader.lanes} does not divide batch_size {self.batch_size}")
        check_size(self.loader.batches, self.batch_size)
        for name in ("mean", "std"):
            values, bands = getattr(self.image, name), self.image.bands
            if values is not None and bands is not None and len(values) != len(bands):
                raise ValueError(f"image.{name} has {len(values)} values for {len(bands)} bands")
        return self


class TrainSettings(LoopSettings):
    """Everything that decides what a pretraining computes.

    Attributes:
        method: one of the masked or of the contrastive methods.
        geography: a regulariser that goes with any of them; None = none.
        pairs: which images are neighbours, for the methods that look at them.
    """

    method: MethodSettings
    geography: GeographySettings | None = None
    pairs: PairSettings = PairSettings()

    @property
    def enlarged(self) -> int:
        """How many times as large as ``image.size_px`` samples are read."""
        return getattr(self.method, "enlarged", 1)

    @model_validator(mode="after")
    def _suits(self) -> Self:
        of_adapt = [key for key in ("drop_path", "window") if getattr(self.encoder, key)]
        if of_adapt:
            raise ValueError(f"encoder.{of_adapt[0]}: {getattr(self.encoder, of_adapt[0])} is for adapt; leave it out")
        if not isinstance(self.method, SiameseSettings):
            _needs_vit(self.method.name, self.encoder)
        elif self.batch_size // self.accumulate < 2:
            raise ValueError(
                f"method {self.method.name} compares the images of a batch: batch_size {self.batch_size} / accumulate "
                f"{self.accumulate} has to be 2 or more"
            )
        return self


class TaskSettings(Section):
    """What is to be learned, and on which images.

    Attributes:
        data: ``folder:PATH`` (class folders), ``manifest:PATH`` or ``FILE.parquet`` (labels in its columns), or
            ``catalog:NAME[/VARIANT][@PATH]`` (a public data set, whose masks are known).
        split: CSV with path and split, ``random:0.8``, or ``blocks:2,buffer_km=10`` (``evaluate.splits``); None = the
            source's own, see ``evaluate.tasks.load_task``.
        labels: column of a manifest, ``label`` (one class each) or ``labels``; None = label where any row has one.
        masks: where the masks of the images are; given, the task is segmentation, and ``data`` a manifest.
        boxes: which objects are to be found; given, the task is detection, and ``data`` a manifest with boxes beside.
    """

    data: str
    split: str | None = None
    labels: Literal["label", "labels"] | None = None
    masks: MaskSettings | None = None
    boxes: BoxSettings | None = None

    @model_validator(mode="before")
    @classmethod
    def _catalogued(cls, given: Any) -> Any:
        if not isinstance(given, dict) or given.get("masks") or not str(given.get("data")).startswith("catalog:"):
            return given
        from terrasieve.data import catalog  # a machine without raster libraries trains on pixels in memory

        masks = catalog.masks_of(str(given["data"]))
        return given if masks is None else {**given, "masks": masks}


def _suits_task(method: str, task: TaskSettings) -> None:
    """Refuse a method that learns from something else than the task has."""
    if task.masks is not None and task.boxes is not None:
        raise ValueError("task.masks and task.boxes are both given; a run learns from one of them")
    given = "task.masks" if task.masks is not None else "task.boxes" if task.boxes is not None else "labels"
    needed = {"rvit": "labels", "rupernet": "task.masks"}.get(method, "task.boxes")
    if given != needed:
        raise ValueError(
            f"method.name {method} learns from {needed}, the task has {given}; use rvit with labels, rupernet with "
            "task.masks, faster_rcnn or oriented_rcnn with task.boxes"
        )
    if task.boxes is not None and task.boxes.oriented != (method == "oriented_rcnn"):
        raise ValueError(
            f"task.boxes.oriented is {str(task.boxes.oriented).lower()} and method.name {method}; faster_rcnn finds "
            "horizontal boxes, oriented_rcnn oriented ones"
        )


class AdaptSettings(LoopSettings):
    """Everything that decides what a fine-tuning computes.

    Attributes:
        frozen: train the head alone; the encoder stays as ``encoder.weights`` has it.
        layer_decay: factor on the learning rate per block from the head down to the patch embedding.
        mixup: alpha of mixup's Beta distribution; 0 = none. Classification only.
        cutmix: likewise of CutMix; both above 0: each pair of samples gets one of them.
        class_weights: ``balanced`` weights classes by their inverse frequency among the training samples.
        validate_every: steps between validations; the best weights are kept, scored on test and exported.
        patience: stop after this many validations without a better one; None = never.
        monitor: the validation metric that says which weights are best; None = the task's first.
    """

    task: TaskSettings
    method: AdapterSettings
    frozen: bool = False
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    mixup: float = Field(default=0.0, ge=0)
    cutmix: float = Field(default=0.0, ge=0)
    class_weights: Literal["none", "balanced"] = "none"
    validate_every: int = Field(default=100, ge=1)
    patience: int | None = Field(default=None, ge=1)
    monitor: str | None = None

    @model_validator(mode="after")
    def _suits(self) -> Self:
        _needs_vit(self.method.name, self.encoder)
        _suits_task(self.method.name, self.task)
        if self.frozen and self.encoder.drop_path:
            raise ValueError("frozen: encoder.drop_path is for encoders that learn; set it to 0")
        if self.mixup or self.cutmix:
            if self.method.name != "rvit":
                raise ValueError(
                    "mixup and cutmix are for classification; set both to 0 for segmentation and detection"
                )
            if self.batch_size // self.accumulate % 2:
                raise ValueError(
                    f"mixup and cutmix mix pairs, so batch_size {self.batch_size} / accumulate {self.accumulate} has "
                    "to be even"
                )
        if self.method.drop.cached:
            augment = self.image.augment
            if augment.crop_scale != (1.0, 1.0) or augment.crop_ratio != (1.0, 1.0):
                raise ValueError(
                    "method.drop.cached: redundancy is computed once of whole images, which random crops move about; "
                    "set image.augment.crop_scale=[1,1] and image.augment.crop_ratio=[1,1], or cached=false"
                )
            if self.mixup or self.cutmix:
                raise ValueError(
                    "method.drop.cached: redundancy is computed once of unmixed images; set mixup and cutmix to 0, "
                    "or cached=false"
                )
        return self
