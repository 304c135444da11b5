"""Training on a data set that fits on the device: jitted once, all seeds at a time."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import mtlopt

PyTree = Any

# Images per forward pass of an evaluation: bounds its memory.
_EVALUATION_BATCH = 500


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """What is trained. A split or a batch is a pytree with a leading axis of examples.

    Attributes:
      oracle: gradients, called as `oracle(params, batch)`.
      init: from a PRNG key to the initial parameters.
      score: `score(params, batch)` returns for each metric its value for each example,
        `[tasks, batch]`. The mean of `"accuracy"` over a split selects the epoch.
      train: the split to learn from.
      validation: the split that selects.
      test: the split that is looked at once, at the end.
    """

    oracle: mtlopt.Oracle
    init: Callable[[jax.Array], PyTree]
    score: Callable[[PyTree, PyTree], dict[str, jax.Array]]
    train: PyTree
    validation: PyTree
    test: PyTree

    @property
    def num_train(self) -> int:
        """Number of training examples."""
        return jax.tree.leaves(self.train)[0].shape[0]


def network_functions(
    make_model: Callable[[jax.Array], Any],
) -> tuple[Callable[[jax.Array], PyTree], Callable[[PyTree], Any]]:
    """Returns `init(key)`, a network's parameters, and `merge(params)`, the network.

    Args:
      make_model: from a PRNG key to a module whose variables are all parameters.
    """
    from flax import nnx

    # The graph needs the shapes only.
    graphdef, _ = nnx.split(nnx.eval_shape(make_model, jax.random.key(0)), nnx.Param)

    def init(key: jax.Array) -> PyTree:
        return nnx.as_pure(nnx.state(make_model(key), nnx.Param))

    return init, lambda params: nnx.merge(graphdef, params)


class State(NamedTuple):
    """All that changes while training. Every leaf has a leading axis of seeds.

    Attributes:
      params: parameters.
      opt_state: state of the method and of the base optimizer.
      best_params: parameters after the best epoch so far.
      best_score: mean validation accuracy after that epoch.
      best_epoch: that epoch, from 1.
    """

    params: PyTree
    opt_state: PyTree
    best_params: PyTree
    best_score: jax.Array
    best_epoch: jax.Array


def init_params(problem: Problem, num_seeds: int) -> PyTree:
    """Returns initial parameters for the seeds 0 to `num_seeds - 1`, stacked.

    One seed after the other, uncompiled: compiling the program takes far longer.
    """
    each = [problem.init(jax.random.key(seed)) for seed in range(num_seeds)]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)


def init_state(params: PyTree, optimizer: optax.GradientTransformation) -> State:
    """Returns the state before the first step, from `init_params`."""
    num_seeds = jax.tree.leaves(params)[0].shape[0]

    # The training step donates `params`: nothing else may hold the same buffers.
    def copy() -> PyTree:
        return jax.tree.map(jnp.copy, params)

    return State(
        params=copy(),
        opt_state=jax.vmap(optimizer.init)(params),
        best_params=copy(),
        best_score=jnp.full(num_seeds, -jnp.inf),
        best_epoch=jnp.zeros(num_seeds, jnp.int32),
    )


def epoch_order(
    num_examples: int, batch_size: int, num_seeds: int, epoch: int
) -> jax.Array:
    """Returns the examples of every batch of an epoch.

    The order is a function of seed and epoch alone, so a resumed run needs no other
    key. The last examples that do not fill a batch are left out.

    Returns:
      Indices `[seeds, steps, batch_size]`.

    Examples:
      >>> epoch_order(10, 4, num_seeds=3, epoch=0).shape
      (3, 2, 4)
    """
    num_steps = num_examples // batch_size

    def one(seed: jax.Array) -> jax.Array:
        key = jax.random.fold_in(jax.random.key(seed), epoch)
        order = jax.random.permutation(key, num_examples)
        return order[: num_steps * batch_size].reshape(num_steps, batch_size)

    return jax.vmap(one)(jnp.arange(num_seeds))


def make_train(
    oracle: mtlopt.Oracle, optimizer: optax.GradientTransformation
) -> jax.stages.Wrapped:
    """Returns the jitted training loop of all seeds.

    Args:
      oracle: the gradients.
      optimizer: weightings, an aggregator and a base optimizer, chained.

    Returns:
      `train(params, opt_state, order, start, stop, data)`, which does the steps `start`
      to `stop - 1` of an epoch and returns the new params and state, and the losses
      summed over these steps, `[seeds, tasks]`. It donates the first two. The bounds
      are traced: one compilation serves for any number of steps.
    """

    def train(
        params: PyTree,
        opt_state: PyTree,
        order: jax.Array,
        start: jax.Array,
        stop: jax.Array,
        data: PyTree,
    ) -> tuple[PyTree, PyTree, jax.Array]:
        def step(index: jax.Array, carry: Any) -> Any:
            params, opt_state, total = carry
            batch = take(data, order[index])
            grads = oracle(params, batch)
            updates, opt_state = optimizer.update(grads, opt_state, params)
            params = optax.apply_updates(params, updates)
            return params, opt_state, total + grads.losses

        total = jnp.zeros(oracle.num_tasks)
        return jax.lax.fori_loop(start, stop, step, (params, opt_state, total))

    every_seed = jax.vmap(train, in_axes=(0, 0, 0, None, None, None))
    return jax.jit(every_seed, donate_argnums=(0, 1))


def make_evaluate(problem: Problem) -> Callable[[PyTree, PyTree], dict[str, jax.Array]]:
    """Returns the jitted `evaluate(params, split)`: metrics, each `[seeds, tasks]`."""

    def evaluate(params: PyTree, split: PyTree) -> dict[str, jax.Array]:
        num_examples = jax.tree.leaves(split)[0].shape[0]
        size = min(_EVALUATION_BATCH, num_examples)
        num_batches = -(-num_examples // size)
        # The last batch is filled up from the front, and cut off again below.
        order = jnp.arange(num_batches * size) % num_examples
        scores = jax.lax.map(
            lambda rows: problem.score(params, take(split, rows)),
            order.reshape(num_batches, size),
        )

        def mean(score: jax.Array) -> jax.Array:
            by_task = jnp.moveaxis(score, 0, 1).reshape(score.shape[1], -1)
            return jnp.mean(by_task[:, :num_examples], axis=1)

        return jax.tree.map(mean, scores)

    return jax.jit(jax.vmap(evaluate, in_axes=(0, None)))


def keep_best(state: State, scores: jax.Array, epoch: int) -> State:
    """Keeps each seed's parameters where `scores`, `[seeds]`, beat the best so far."""
    better = scores > state.best_score

    def choose(new: jax.Array, old: jax.Array) -> jax.Array:
        return jnp.where(better.reshape(-1, *[1] * (new.ndim - 1)), new, old)

    return state._replace(
        best_params=jax.tree.map(choose, state.params, state.best_params),
        best_score=jnp.where(better, scores, state.best_score),
        best_epoch=jnp.where(better, epoch, state.best_epoch),
    )


def take(data: PyTree, rows: jax.Array) -> PyTree:
    """Returns the examples `rows` of a split."""
    return jax.tree.map(lambda leaf: leaf[rows], data)


def batches(num_examples: int, size: int, seed: int, epoch: int) -> np.ndarray:
    """Returns the examples of every batch of an epoch, the same for every method.

    Returns:
      Indices `[steps, size]`; examples that do not fill a batch are left out.

    Examples:
      >>> batches(10, 4, seed=0, epoch=0).shape
      (2, 4)
    """
    order = np.random.default_rng([seed, epoch]).permutation(num_examples)
    num_steps = num_examples // size
    return order[: num_steps * size].reshape(num_steps, size)
