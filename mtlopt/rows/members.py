"""Some of the tasks, known when the program is traced."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Members:
    """Some of the tasks, known at trace time; only these are evaluated.

    Attributes:
      indices: indices of these tasks.
      num_tasks: number of all tasks.
    """

    indices: tuple[int, ...]
    num_tasks: int

    @classmethod
    def of(cls, mask: np.ndarray) -> "Members":
        """Returns the tasks at which a mask `[tasks]` is true."""
        return cls(tuple(np.flatnonzero(mask).tolist()), len(mask))

    @property
    def mask(self) -> np.ndarray:
        """Mask of these tasks, bool `[tasks]`."""
        return np.isin(np.arange(self.num_tasks), self.indices)

    def take(self, values: jax.Array) -> jax.Array:
        """Returns the entries `[members, ...]` of `values` `[tasks, ...]`."""
        some = [values[i] for i in self.indices]
        return jnp.stack(some) if some else values[:0]

    def spread(self, values: jax.Array) -> jax.Array:
        """Returns `[tasks, ...]`, the inverse of `take`, with zeros for other tasks."""
        places = {task: place for place, task in enumerate(self.indices)}
        if self.indices:
            zero = jnp.zeros_like(values[0])  # keeps the sharding
        else:
            zero = jnp.zeros_like(values, shape=values.shape[1:])
        return jnp.stack(
            [values[places[i]] if i in places else zero for i in range(self.num_tasks)]
        )
