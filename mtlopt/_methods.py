"""The registry of methods: one list drives the tests, the docs and the experiments."""

import dataclasses
from collections.abc import Callable

import optax

from mtlopt.aggregators.aligned_mtl import aligned_mtl
from mtlopt.aggregators.mgda import mgda
from mtlopt.aggregators.pcgrad import pcgrad
from mtlopt.aggregators.sums import mean_tasks, sum_tasks
from mtlopt.latent import in_latent_space
from mtlopt.weightings.dwa import weight_by_dwa
from mtlopt.weightings.uncertainty import weight_by_uncertainty

Aggregator = optax.GradientTransformation


@dataclasses.dataclass(frozen=True)
class Method:
    """A complete method: what stands between a `task_grad` and a base optimizer.

    Attributes:
      title: the name that the field uses.
      factory: `factory(num_tasks, steps_per_epoch)`.
      public: the public names that it is made of.
      equal: length of the update on T equal gradients, in multiples of their length.
      backward: backward passes of the encoder a step: `"1"` or `"T"`.
      latent: whether it needs a problem with `encode`.
      properties: the claims that hold for every Jacobian and are tested, of
        `"non_conflicting"` (no task's inner product with the update is negative),
        `"permutation_equivariant"` (the order of the tasks does not matter),
        `"scale_equivariant"` (a common factor of the gradients comes out),
        `"deterministic"`.
    """

    title: str
    factory: Callable[[int, int], Aggregator]
    public: tuple[str, ...]
    equal: Callable[[int], float]
    backward: str
    latent: bool = False
    properties: frozenset[str] = frozenset(
        {"permutation_equivariant", "scale_equivariant", "deterministic"}
    )

    def make(self, num_tasks: int, steps_per_epoch: int = 1) -> Aggregator:
        """Returns the transform, with the defaults of the library.

        Args:
          num_tasks: number of tasks.
          steps_per_epoch: for methods that count epochs.
        """
        return self.factory(num_tasks, steps_per_epoch)


_NON_CONFLICTING = frozenset(
    {
        "non_conflicting",
        "permutation_equivariant",
        "scale_equivariant",
        "deterministic",
    }
)

METHODS: dict[str, Method] = {
    "sum_tasks": Method(
        "Summed loss",
        lambda num_tasks, _: sum_tasks(num_tasks),
        ("sum_tasks",),
        float,
        "1",
    ),
    "mean_tasks": Method(
        "Uniform scaling",
        lambda num_tasks, _: mean_tasks(num_tasks),
        ("mean_tasks",),
        lambda _: 1.0,
        "1",
    ),
    "uncertainty": Method(
        "Uncertainty",
        lambda num_tasks, _: optax.chain(
            weight_by_uncertainty(num_tasks), sum_tasks(num_tasks)
        ),
        ("weight_by_uncertainty", "sum_tasks"),
        lambda num_tasks: num_tasks / 2,
        "1",
    ),
    "dwa": Method(
        "DWA",
        lambda num_tasks, steps_per_epoch: optax.chain(
            weight_by_dwa(num_tasks, steps_per_epoch=steps_per_epoch),
            sum_tasks(num_tasks),
        ),
        ("weight_by_dwa", "sum_tasks"),
        float,
        "1",
    ),
    "mgda": Method(
        "MGDA",
        lambda num_tasks, _: mgda(num_tasks),
        ("mgda",),
        lambda _: 1.0,
        "T",
        properties=_NON_CONFLICTING,
    ),
    "mgda_ub": Method(
        "MGDA-UB",
        lambda num_tasks, _: in_latent_space(mgda(num_tasks)),
        ("in_latent_space", "mgda"),
        lambda _: 1.0,
        "1",
        latent=True,
    ),
    "pcgrad": Method(
        "PCGrad",
        lambda num_tasks, _: pcgrad(num_tasks),
        ("pcgrad",),
        float,
        "T",
        properties=frozenset({"scale_equivariant"}),
    ),
    "aligned_mtl": Method(
        "Aligned-MTL (θ-aligned)",
        lambda num_tasks, _: aligned_mtl(num_tasks),
        ("aligned_mtl",),
        lambda _: 1.0,
        "T",
    ),
    "aligned_mtl_ub": Method(
        "Aligned-MTL (Z-aligned)",
        lambda num_tasks, _: in_latent_space(aligned_mtl(num_tasks)),
        ("in_latent_space", "aligned_mtl"),
        lambda _: 1.0,
        "1",
        latent=True,
    ),
}
