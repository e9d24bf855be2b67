"""The recipe's sections on training: how long, in which batches, with which changes of images."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from lorkd_deploy.schema import Part

Ratio = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(gt=0, le=1)]


def _from_to(value: tuple[float, float]) -> tuple[float, float]:
    if value[0] > value[1]:
        raise ValueError("wanted a smallest and a largest value, in this order")
    return value


FractionRange = Annotated[tuple[Fraction, Fraction], AfterValidator(_from_to)]
RatioRange = Annotated[tuple[Ratio, Ratio], AfterValidator(_from_to)]


class VerticalFlip(Part):
    """Upside down; for images without an up, such as cells and tissue."""

    kind: Literal["vertical_flip"]
    probability: float = Field(default=0.5, ge=0, le=1)


class RandomResizedCrop(Part):
    """A part of the image, at the image's size."""

    kind: Literal["random_resized_crop"]
    scale: FractionRange = Field(default=(0.8, 1.0), description="of the area")
    ratio: RatioRange = Field(default=(0.9, 1.1), description="width / height")


class Rotation(Part):
    kind: Literal["rotation"]
    degrees: float = Field(default=10, gt=0, le=180, description="at most, in either direction")


class ColorJitter(Part):
    """Each a largest relative change; hue as a fraction of the colour circle."""

    kind: Literal["color_jitter"]
    brightness: float = Field(default=0.0, ge=0, le=1)
    contrast: float = Field(default=0.0, ge=0, le=1)
    saturation: float = Field(default=0.0, ge=0, le=1)
    hue: float = Field(default=0.0, ge=0, le=0.5)


class GaussianBlur(Part):
    kind: Literal["gaussian_blur"]
    sigma: RatioRange = Field(default=(0.1, 1.0), description="px")
    probability: float = Field(default=0.5, ge=0, le=1)


class RandomErasing(Part):
    """A rectangle in the image's mean colour."""

    kind: Literal["random_erasing"]
    scale: FractionRange = Field(default=(0.02, 0.1), description="of the area")
    probability: float = Field(default=0.25, ge=0, le=1)


AugmentSpec = Annotated[
    VerticalFlip | RandomResizedCrop | Rotation | ColorJitter | GaussianBlur | RandomErasing,
    Field(discriminator="kind"),
]


class TrainSpec(Part):
    """How a network is trained; the teacher and the student have one each."""

    epochs: float = Field(default=24, gt=0, description="passes over the sum of all training sets")
    batch_size: int = Field(default=128, ge=1)
    optimizer: Literal["adamw", "sgd"] = Field(
        default="adamw", description="sgd moves a factor by (alpha / rank)² too far or too little"
    )
    lr: float = Field(default=0.004, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1, description="of sgd")
    weight_decay: float = Field(default=0.01, ge=0)
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup: float = Field(default=0.05, ge=0, lt=1, description="fraction of all steps")
    temperature: float = Field(
        default=2.0,
        ge=1,
        description="a task of n images is drawn with weight n^(1/temperature): "
        "1 in proportion to size, large values evenly",
    )
    flip: bool = Field(default=True, description="mirror half of the training images left–right")
    shift: float = Field(
        default=0.0, ge=0, lt=0.5, description="move images by up to this fraction of their side"
    )
    augment: tuple[AugmentSpec, ...] = Field(
        default=(),
        description="further changes of training images, in this order, by torchvision's v2 "
        "functions: vertical_flip, random_resized_crop, rotation, color_jitter, gaussian_blur, "
        "random_erasing",
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        default="fp32",
        description="bf16: autocast, with fp32 weights; fp16: the same with a scaled loss, for "
        "GPUs without bf16; auto: bf16 where the GPU or CPU has its arithmetic, else fp32",
    )
    channels_last: bool = Field(
        default=True,
        description="keep images as NHWC in memory: faster in most cases that were tried",
    )
    compile: bool = Field(
        default=False,
        description="torch.compile of the teacher's backbone, or of the student's layers between "
        "those with experts; needs a C++ compiler and minutes before the first step",
    )
    accumulate: int = Field(
        default=1,
        ge=1,
        description="parts in which a batch passes, one after another, before the weights are "
        "updated once: less memory for the same update, but for batch statistics",
    )
    clip: float | None = Field(
        default=None, gt=0, description="largest norm of all gradients together; unset: any"
    )
    label_smoothing: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="share of each label that goes to all classes of its task alike, of a "
        "multi-label task's finding to its presence and absence",
    )
    class_weights: Literal["none", "balanced"] = Field(
        default="none",
        description="balanced: a task's classes weigh the same in its loss however many training "
        "images each has",
    )
    validate_every: float = Field(default=1, gt=0, description="epochs between validations")
    checkpoint_minutes: float = Field(default=5, ge=0, description="0: after every step")


class TransferSpec(Part):
    """What the student learns from the teacher beside the labels."""

    kind: Literal["both", "logits", "features", "paper", "none"] = Field(
        default="both",
        description="logits: each task's own, softened by tau; features: the student's, projected "
        "to the teacher's standardised principal components; both: the sum of these two; paper: "
        "LoRKD's, whose projection is on the teacher's side",
    )
    tau: float = Field(default=2, gt=0, description="of softened logits; the paper's is 10")
    beta: float = Field(default=1, ge=0, description="weight beside the labels' loss")
