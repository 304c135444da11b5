"""Masks over the units of an encoder's layers, for Maximum Roaming."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from mtlopt.models.shared_encoder import SharedEncoder

Masks = Mapping[str, jax.Array]  # maps a layer's name to one bool per unit or channel


def check_masks(masks: Masks | None, layers: Sequence[str]) -> Masks:
    """Returns the masks by layer ({} for None); raises if a mask's layer is unknown."""
    unknown = set(masks or {}) - set(layers)
    if unknown:
        raise ValueError(
            f"`masks` must name layers of {tuple(layers)}, got {min(unknown)!r}."
        )
    return masks or {}


def mask_units(x: jax.Array, masks: Masks, layer: str) -> jax.Array:
    """Zeroes the units that the mask leaves out of a layer `[..., units]`."""
    if layer not in masks:
        return x
    mask = masks[layer]
    if jnp.shape(mask) != x.shape[-1:]:
        raise ValueError(
            f"`masks[{layer!r}]` must have shape {x.shape[-1:]}, for one task, got "
            f"{jnp.shape(mask)}."
        )
    # Unlike a product, this gives exactly zero even if the unit is not finite.
    return jnp.where(mask, x, 0)


class MaskedEncoder(SharedEncoder):
    """Base class of networks with units to mask, see `mtlopt.maximum_roaming`."""

    def encode(self, x: jax.Array, masks: Masks | None = None) -> jax.Array:
        """Maps a batch to the latent, using only the units that `masks` keeps.

        Args:
            x: The batch.
            masks: Mapping from the name of a layer of the encoder to bool `[units]`
                (channels of a convolution). Units that are False output zero. Layers
                without a mask use all units.

        Raises:
            ValueError: If a mask is for an unknown layer or has a wrong shape.
        """
        return self.encoder(x, masks)
