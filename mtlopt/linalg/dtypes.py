"""The precision of small matrices."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp


def solver_dtype(leaves: Sequence[Any]) -> jnp.dtype:
    """Returns the dtype of small matrices: float32 or wider for rows of any dtype."""
    with jax.numpy_dtype_promotion("standard"):  # intended, even if "strict" is set
        return jnp.promote_types(jnp.result_type(*leaves), jnp.float32)
