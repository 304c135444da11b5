"""Pretrained encoders, random crops, and falling learning rates, as in the papers."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.lab.settings import loaded
from experiments.lab.vision.experiment import Experiment, Settings, read_settings, run
from mtlopt.models import load_resnet

# Mean and standard deviation of ImageNet's pixels, from torchvision.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainedSettings(Settings):
    """The settings of all vision experiments, and a pretrained encoder.

    Attributes:
      pretrained: safetensors file with a ResNet's weights in torchvision's names.
    """

    pretrained: str | None = None


class Prepared(nnx.Module):
    """An encoder that standardises its images, crops them to a square, or both.

    In training the crop is random, and a counter changes it at every step. In
    evaluation the crop is in the middle.
    """

    def __init__(
        self, encoder: Any, standardise: bool, crop: int | None, *, rngs: nnx.Rngs
    ):
        self.encoder, self.standardise, self.crop = encoder, standardise, crop
        self.deterministic = False  # `eval()` sets it
        if crop is not None:
            self.count = nnx.Variable(jax.random.bits(rngs.params(), (), jnp.uint32))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Encodes a batch of images from 0 to 1."""
        return self.encoder(self._prepare(x))

    def feature_map(self, x: jax.Array) -> jax.Array:
        """Returns the map before the mean over pixels."""
        return self.encoder.feature_map(self._prepare(x))

    def _prepare(self, x: jax.Array) -> jax.Array:
        if self.standardise:
            x = (x - jnp.array(_MEAN)) / jnp.array(_STD)
        if self.crop is None:
            return x
        corners = jnp.array([size - self.crop for size in x.shape[1:3]])
        if self.deterministic:
            starts = jnp.tile(corners // 2, (len(x), 1))
        else:
            key = jax.random.key(self.count[...])
            starts = jax.random.randint(key, (len(x), 2), 0, corners + 1)
            self.count[...] += jnp.uint32(1)
        size = (self.crop, self.crop, x.shape[3])

        def cut(image: jax.Array, start: jax.Array) -> jax.Array:
            return jax.lax.dynamic_slice(image, (*start, 0), size)

        return jax.vmap(cut)(x, starts)


def prepare(
    network: Any, settings: PretrainedSettings, key: jax.Array, crop: int | None = None
) -> Any:
    """Loads the pretrained file of the settings, if any, and adds the cropping."""
    if settings.pretrained is not None:
        loaded(load_resnet, settings.pretrained, network)
    if settings.pretrained is not None or crop is not None:
        standardise = settings.pretrained is not None
        rngs = nnx.Rngs(key)
        network.encoder = Prepared(network.encoder, standardise, crop, rngs=rngs)
    return network


def run_photographs(experiment: Experiment, argv: Sequence[str]) -> None:
    """Runs an experiment; the first line of output says if images are rendered."""
    if read_settings(experiment, argv).data_dir is None:
        print(
            "Rendered images instead of photographs: this run shows that the pipeline "
            "works. It says nothing about the paper's claims; for those, give "
            "--data-dir and --full.\n"
        )
    run(experiment, argv)
