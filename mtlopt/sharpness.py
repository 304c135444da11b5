"""Sharpness-aware gradients, taken at the worst nearby point (Foret et al., 2021)."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax.numpy as jnp

from mtlopt._checks import check_choice, check_range
from mtlopt.heads import Inputs
from mtlopt.labels import STACKED
from mtlopt.linalg.dtypes import solver_dtype
from mtlopt.linalg.normalise import safe_divide
from mtlopt.linearization import PullbackLinearization
from mtlopt.oracle import Oracle
from mtlopt.problems import Evaluation, HeadEvaluation, OfProblem, Problem
from mtlopt.rows.arithmetic import row_norms, scale_head_grads
from mtlopt.rows.map_tasks import UNROLL_LIMIT, map_tasks
from mtlopt.rows.protocol import Leaves
from mtlopt.step import check_oracle

PyTree = Any
Ascent = Literal["task", "sum"]


def sharpness_aware(
    oracle: Oracle, rho: float = 0.05, *, ascent: Ascent = "task"
) -> Oracle:
    r"""Takes every gradient at the worst nearby point (SAM), for any method.

    .. math:: \tilde g_k = \nabla L_k(\theta + \epsilon_k), \qquad
        \epsilon_k = \rho \, \frac{\nabla L_k(\theta)}{\|\nabla L_k(\theta)\|}

    The norm covers all parameters that the task uses, its head included. With
    `ascent="sum"`, all tasks use one :math:`\epsilon`, which follows the gradient of
    the sum of the present tasks' losses, over all parameters. If this gradient is zero,
    :math:`\epsilon` is zero too.

    The result is an oracle like any other: `train_step`, `block_step` and
    `individual_step` take it, and any chain of transforms takes its gradients. Only the
    gradients are computed at the moved parameters. Losses, aux and the model's state
    belong to the parameters before the move, so BatchNorm statistics change once. A
    line search also evaluates the losses without the move. A weighting scales the
    gradients at the moved point and does not change the ascent steps.

    With `ascent="task"`, each task needs two backward passes and one more run of
    `encode`. `ascent="sum"` needs one forward and one backward pass more than the
    oracle that you pass. With `ascent="sum"`, you can still use methods in latent space
    and the option `layerwise` of `task_grad`, and one backward pass still gives the
    gradient of the summed loss.

    Args:
      oracle: an oracle from `task_grad`. With microbatches, the ascent step uses the
        whole batch.
      rho: length of the ascent step, at least 0.
      ascent: `"task"` if each task climbs its own loss, `"sum"` if all tasks climb the
        summed loss.

    Returns:
      An `Oracle`.

    Raises:
      TypeError: if `oracle` is not an `mtlopt.Oracle`.
      ValueError: if `rho` is negative or `ascent` has another value. The method `heads`
        of the result always raises. With `ascent="task"`, methods in latent space
        raise, because the tasks have no latent in common.

    Examples:
      >>> import jax.numpy as jnp
      >>> import mtlopt
      >>> oracle = mtlopt.task_grad(
      ...     {"up": lambda w: w[0] ** 2, "down": lambda w: w[0] + w[1] ** 2}, "shared"
      ... )
      >>> sharp = mtlopt.sharpness_aware(oracle, rho=0.5)
      >>> grads = sharp(jnp.array([1.0, 0.0]))
      >>> print(grads.losses, *grads.jacobian())
      [1. 1.] [3. 0.] [1. 0.]

    References:
      Foret, Kleiner, Mobahi and Neyshabur, *Sharpness-aware minimization for
      efficiently improving generalization*, ICLR 2021, equation 2; Phan et al.,
      *Improving multi-task learning via seeking task-based flat regions*, 2022,
      https://arxiv.org/abs/2211.13723, for `ascent="task"`.

    Note:
      Phan et al. split each gradient at the moved point into two parts: the gradient
      before the move, and the change due to the move. They aggregate the two parts
      separately and add the results. Here the aggregator gets the sum of both parts.
      Their code uses one norm for shared leaves and head in one experiment, as here,
      and separate norms in the others.
    """
    check_oracle(oracle)
    check_range("rho", rho)
    check_choice("ascent", ascent, ("task", "sum"))
    problem = SharpnessAware(oracle.problem, rho, ascent)
    return dataclasses.replace(oracle, problem=problem, checked=set())


@dataclasses.dataclass(frozen=True, eq=False)
class SharpnessAware(OfProblem):
    """A problem whose gradients are taken at moved parameters.

    Attributes:
      problem: the problem.
      rho: length of the step up.
      ascent: whether a task climbs its own loss or the sum of the losses.
    """

    problem: Problem[Any]
    rho: Any
    ascent: Ascent

    @property
    def label_counts(self) -> Callable[..., Any] | None:
        return self.problem.label_counts

    def heads_at(self, inputs: Inputs, z: PyTree) -> HeadEvaluation:
        del inputs, z
        raise ValueError(
            "`heads` has no sharpness-aware form: on a given latent the shared leaves "
            "cannot move. Call `heads` of the oracle that you passed to "
            "sharpness_aware."
        )

    def evaluate(self, inputs: Inputs, factors: Any, members: Any) -> Evaluation[Any]:
        assert factors is None  # microbatches are inside `problem`
        here = self.problem.evaluate(inputs, None, members)
        if self.ascent == "task":
            rows, head_grads = self._each(inputs, members, here)
            linear = PullbackLinearization(rows)
            return here._replace(z=None, head_grads=head_grads, linear=linear)
        moved = self._climb(inputs, *_total(inputs, members, here))
        there = self.problem.evaluate(moved, None, members)
        return here._replace(head_grads=there.head_grads, linear=there.linear)

    def _each(
        self, inputs: Inputs, members: Any, here: Evaluation[Any]
    ) -> tuple[Leaves, Leaves]:
        """Returns rows and heads' gradients, each task's at its own point."""
        labels, num_tasks = inputs.partition.head_labels, len(self.tasks)
        everyone, one = jnp.ones(num_tasks), jnp.ones(1)
        tasks = range(num_tasks) if members is None else members
        rows = here.linear.rows(jnp.ones(len(tasks)), None).leaves()

        def at_its_point(task: Any, row: Leaves) -> tuple[Leaves, Leaves]:
            alone = jnp.arange(num_tasks) == task
            heads = scale_head_grads(inputs.partition, here.head_grads, everyone, alone)
            moved = self._climb(inputs, row, heads)
            there = self.problem.evaluate(moved, None, [task])
            return there.linear.combine(one, one, None), there.head_grads

        if not self.takes_traced_task or not set(labels) <= {STACKED}:
            found = [
                at_its_point(task, [leaf[i] for leaf in rows])
                for i, task in enumerate(tasks)
            ]
            rows = [
                jnp.stack([row[i] for row, _ in found]) if found else leaf
                for i, leaf in enumerate(rows)
            ]
            heads = [jnp.zeros_like(leaf) for leaf in here.head_grads]
            for task, (_, own) in zip(tasks, found, strict=True):
                for i, label in enumerate(labels):
                    if label == self.tasks[task]:
                        heads[i] = own[i]
            return rows, heads

        def stacked(values: Leaves) -> Leaves:
            task, *row = values
            row, heads = at_its_point(task, row)
            return [*row, *(leaf[task] for leaf in heads)]

        indices = jnp.asarray(tasks, jnp.int32)
        batching = "unroll" if len(tasks) <= UNROLL_LIMIT else "map"
        both = map_tasks(stacked, [indices, *rows], batching)
        rows, own = both[: len(rows)], both[len(rows) :]
        return rows, [
            jnp.zeros_like(leaf).at[indices].set(found)
            for leaf, found in zip(here.head_grads, own, strict=True)
        ]

    def _climb(self, inputs: Inputs, shared: Leaves, heads: Leaves) -> Inputs:
        """Returns the point `rho` up the gradient."""
        leaves = [*shared, *heads]
        if not leaves:
            return inputs
        dtype = solver_dtype(leaves)
        (norm,) = row_norms([leaf[None].astype(dtype) for leaf in leaves])
        factor = safe_divide(jnp.asarray(self.rho, dtype), norm)

        def move(params: Leaves, grads: Leaves) -> Leaves:
            return [
                leaf + (factor * grad.astype(dtype)).astype(leaf.dtype)
                for leaf, grad in zip(params, grads, strict=True)
            ]

        return dataclasses.replace(
            inputs,
            shared=move(inputs.shared, shared),
            head_params=move(inputs.head_params, heads),
        )


def _total(
    inputs: Inputs, members: Any, here: Evaluation[Any]
) -> tuple[Leaves, Leaves]:
    """Returns the gradient of the sum of the present tasks' losses."""
    there = some = inputs.present
    if there is not None and members is not None:
        some = there[jnp.asarray(members, jnp.int32)]
    ones = jnp.ones_like(here.losses)
    found = here.linear.total(ones, some)
    if found is not None:
        return found
    everyone = jnp.ones(len(inputs.partition.tasks))
    heads = scale_head_grads(inputs.partition, here.head_grads, everyone, there)
    return here.linear.combine(ones, ones, some), heads
