"""Alternating training of shared and task-specific parameters (SAT, ATE)."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mtlopt._checks import as_int, as_transform, check_choice
from mtlopt.grad import Grad, check_updates
from mtlopt.labels import FROZEN, SHARED, Rules, label_params
from mtlopt.oracle import Oracle
from mtlopt.partition import Partition, check_params, check_same_labels
from mtlopt.per_label import per_label
from mtlopt.step import (
    Run,
    StepOutput,
    check_names,
    check_oracle,
    keep_finite,
    keep_frozen,
    with_state,
)

PyTree = Any
Block = Literal["shared", "task"]
BLOCKS = ("shared", "task")
_STEPS = {  # which step takes an optimizer with such a state
    "AlternateBlocksState": "block_step",
    "IndividualOptimizersState": "individual_step",
}


class AlternateBlocksState(NamedTuple):
    """State of `alternate_blocks`.

    Attributes:
      count: number of steps so far, int32.
      shared_is_next: whether the next step moves the shared block, bool.
      inner_state: states of both optimizers, one per label.
    """

    count: jax.Array
    shared_is_next: jax.Array
    inner_state: Any


def block_at(step: int, shared_steps: int = 1, task_steps: int = 1) -> Block:
    """Returns the block that moves in a step, for phases that you choose in Python.

    The three numbers may all count epochs instead of steps.

    Args:
      step: number of steps so far.
      shared_steps: length of the shared phase, which begins every cycle.
      task_steps: length of the task phase.

    Examples:
      >>> [block_at(step, shared_steps=2, task_steps=1) for step in range(4)]
      ['shared', 'shared', 'task', 'shared']
    """
    return "shared" if step % (shared_steps + task_steps) < shared_steps else "task"


def alternate_blocks(
    shared: optax.GradientTransformation,
    task: optax.GradientTransformation,
    labels: Rules,
    *,
    shared_steps: int = 1,
    task_steps: int = 1,
) -> optax.GradientTransformationExtraArgs:
    r"""Moves the shared parameters for some steps, then the heads, and so on in turn.

    .. math::
        w_0 &\leftarrow w_0 - \eta_0 \, m_0(\nabla_{w_0} \ell)
        \quad \text{for } n \text{ steps, then} \\
        w_{ts} &\leftarrow w_{ts} - \eta_{ts} \, m_{ts}(\nabla_{w_{ts}} \ell)
        \quad \text{for } m \text{ steps}

    Here `w_0` are the shared parameters and `w_ts` the heads. `m_0` and `m_ts` are any
    Optax optimizers, each with its own learning rate and state. SAT is `n = m = 1` with
    a fresh batch for each step. ATE counts whole epochs: with `t` batches per epoch,
    `n = t E_0` and `m = t E_ts` (Algorithm A.1, whose printed loops run one epoch
    more). The block that does not move, and the state of its optimizer, stay exactly
    the same. So a schedule inside `shared` or `task` counts only that block's own
    steps, which are `n` or `m` of every `n + m` steps. To use a schedule of the global
    step, leave the learning rate out of both optimizers, and chain
    `optax.scale_by_learning_rate(schedule)` after this transform.

    The input of the transform is the gradient of the summed loss or the output of an
    aggregator. Both have the structure of the parameters. The transform reads only
    the active block of the gradient, and `block_step` computes only this block.

    `update` takes three keywords, which `block_step` passes. `block` names the block
    that moves, as a Python string. If you pass `block`, the optimizer of the other
    block is not even compiled. Without `block`, the step count chooses the block inside
    the program. `active` is a mapping from label to bool, as in `per_label`, for heads
    whose tasks are absent from the batch. If you pass the `partition` of an oracle, the
    transform raises an error if the partition has other labels.

    Args:
      shared: optimizer of the shared leaves.
      task: optimizer of the heads, with a state per label.
      labels: which leaf is shared and which belongs to which task, see `label_params`.
      shared_steps: `n`, the length of the shared phase.
      task_steps: `m`, the length of the task phase.

    Returns:
      A transform. Chain it last; only a transform that scales updates may follow it.

    Raises:
      TypeError: if `shared` or `task` is not an optimizer.
      ValueError: if a number of steps is not a positive int or `block` is unknown; at
        `init`, if one of the two blocks has no leaf.

    Examples:
      >>> import jax.numpy as jnp
      >>> import mtlopt, optax
      >>> params = {"trunk": jnp.zeros(1), "head": jnp.zeros(1)}
      >>> tx = mtlopt.alternate_blocks(
      ...     optax.sgd(1.0), optax.sgd(0.1), {"trunk": "shared", "head": "a"}
      ... )
      >>> state, ones = tx.init(params), {"trunk": jnp.ones(1), "head": jnp.ones(1)}
      >>> for _ in range(2):
      ...     updates, state = tx.update(ones, state, params)
      ...     print(updates["trunk"], updates["head"])
      [-1.] [0.]
      [0.] [-0.1]

    References:
      Bellavia, Della Santa and Papini, *ATE-SG: alternate through the epochs stochastic
      gradient for multi-task neural networks*, 2026, Algorithms 3.1, 3.2 and A.1.
    """
    for name, optimizer in {"shared": shared, "task": task}.items():
        if not isinstance(optimizer, optax.GradientTransformation):
            raise TypeError(
                f"`{name}` must be an Optax optimizer, got {type(optimizer).__name__}. "
                "The two optimizers come first and the labels third, as in "
                "alternate_blocks(adam(1e-3), adam(1e-2), labels)."
            )
    shared_steps = as_int("shared_steps", shared_steps)
    task_steps = as_int("task_steps", task_steps)
    both = per_label(lambda label: shared if label == SHARED else task, labels)
    cycle = shared_steps + task_steps

    def init_fn(params: PyTree) -> AlternateBlocksState:
        check_params(params)
        names = set(jax.tree.leaves(label_params(params, labels))) - {FROZEN}
        if SHARED not in names or names == {SHARED}:
            raise ValueError(
                f"`labels` must have leaves labelled {SHARED!r} and leaves of heads, "
                f"got only {', '.join(map(repr, sorted(names)))}."
            )
        return AlternateBlocksState(
            jnp.zeros([], jnp.int32), jnp.array(True), both.init(params)
        )

    def update_fn(
        updates: PyTree,
        state: Any,
        params: PyTree = None,
        *,
        block: Block | None = None,
        active: Mapping[str, Any] | None = None,
        partition: Partition | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, AlternateBlocksState]:
        otherwise = ", or use mtlopt.block_step in place of train_step"
        check_updates(updates, "alternate_blocks", otherwise)
        if block is not None:
            check_choice("block", block, BLOCKS)
        if partition is not None:
            check_same_labels(labels, updates, partition)
        flags = {
            label: _moves(block, state.shared_is_next, label, (active or {}).get(label))
            for label in state.inner_state.inner_states
        }
        unknown = set(active or {}) - set(flags)
        if unknown:
            raise ValueError(
                f"`active` must name labels of {tuple(flags)}, got {min(unknown)!r}."
            )
        moved, inner_state = both.update(
            updates, state.inner_state, params, active=flags, **extra_args
        )
        count = jnp.asarray(optax.safe_increment(state.count))
        return moved, AlternateBlocksState(
            count, count % cycle < shared_steps, inner_state
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _moves(
    block: Block | None, shared_is_next: jax.Array, label: str, active: Any
) -> bool | jax.Array:
    """Returns whether a label moves, as a Python bool if it is known at trace time."""
    if block is None:
        turn = shared_is_next if label == SHARED else ~shared_is_next
        return turn if active is None else turn & active
    if (block == SHARED) != (label == SHARED):
        return False
    return True if active is None else active


def block_step(
    oracle: Oracle, optimizer: optax.GradientTransformation, block: Block | None = None
) -> Callable[..., tuple[Run, StepOutput]]:
    """Builds a training step that computes only the gradient of the moving block.

    With `block`, you choose the block in Python: the gradient of the other block is
    never part of the program, and a host loop (see `block_at`) calls one of two
    compiled steps. Without `block`, a `lax.cond` on the optimizer's step count chooses
    the block inside the program, so the step may be the body of a `lax.scan`. Under
    `jax.vmap` a `cond` computes both branches, so to train many seeds at once, choose
    the block in Python.

    Args:
      oracle: an oracle from `task_grad`.
      optimizer: `alternate_blocks`, or a chain with it, without weightings or
        aggregator: the step uses the gradient of the summed loss. Put factors that
        multiply the losses (the paper's `lambda`) into the loss functions. To use the
        direction of an aggregator, write your own step with
        `optimizer.update(oracle(params, ...), ...)`.
      block: `"shared"` or `"task"`; None means that the optimizer's step count chooses
        the block.

    Returns:
      A step on the summed loss. It has the arguments and results of a step from
      `train_step`. The optimizer gets `extra_args`, such as `value` for
      `optax.reduce_on_plateau`.

    Raises:
      TypeError: if `oracle` is not an `mtlopt.Oracle`; at a step, if `run` is not a
        `Run`.
      ValueError: if `block` is unknown; at the first step, if `optimizer` has no
        `alternate_blocks`, or if its labels differ from the oracle's labels.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> import mtlopt, optax
      >>> params = {"trunk": jnp.array(1.0), "a": jnp.array(2.0)}
      >>> labels = {"trunk": "shared", "a": "a"}
      >>> oracle = mtlopt.task_grad(
      ...     {"a": lambda p, z, x: p["a"] * z},
      ...     labels,
      ...     encode=lambda p, x: p["trunk"] * x,
      ... )
      >>> tx = mtlopt.alternate_blocks(optax.sgd(0.1), optax.sgd(0.1), labels)
      >>> step = jax.jit(mtlopt.block_step(oracle, tx))
      >>> run = mtlopt.Run(params, tx.init(params))
      >>> for x in (1.0, 5.0):
      ...     run, output = step(run, x)
      ...     print(run.params["trunk"], run.params["a"], output.losses)
      0.8 2.0 [2.]
      0.8 1.6 [8.]
    """
    if block is not None:
        check_choice("block", block, BLOCKS)
    check_oracle(oracle)
    optimizer = as_transform("optimizer", optimizer)

    def step(
        run: Run, *args: Any, present: Any = None, **extra_args: Any
    ) -> tuple[Run, StepOutput]:
        args = with_state(oracle, args, run)
        check_names(extra_args)
        params = run.params
        state = only_state(run.opt_state, AlternateBlocksState, "alternate_blocks")

        def gradient(block: Block) -> Callable[[], Grad]:
            return lambda: oracle.block(block, params, *args, present=present)

        if block is None:
            both = gradient("shared"), gradient("task")
            grad = jax.lax.cond(state.shared_is_next, *both)
        else:
            grad = gradient(block)()
        there = oracle.present(args, present)
        active = None if there is None else oracle.active(params, there)
        partition = oracle.partition(params)
        updates, opt_state = optimizer.update(
            grad.grad,
            run.opt_state,
            params,
            block=block,
            active=active,
            partition=partition,
            **extra_args,
        )
        updates = keep_frozen(updates, partition.labels)
        params = optax.apply_updates(params, updates)
        model_state = keep_finite(run, opt_state, grad.state)
        return Run(params, opt_state, model_state), StepOutput(grad.losses, grad.aux)

    return step


def only_state(opt_state: PyTree, kind: type, name: str) -> Any:
    """Returns the only state of a kind in an optimizer's state, or raises.

    Raises:
      ValueError: if there is no such state or more than one, or if the optimizer has a
        weighting or an aggregator.
    """
    if optax.tree.get_all_with_path(opt_state, "task_weights"):
        raise ValueError(
            f"`optimizer` must be `{name}` without a weighting or an aggregator, got "
            "an optimizer with `task_weights` in its state. This step uses gradients "
            "of single losses, or of their sum. Leave the method out, or call "
            "optimizer.update(oracle(params, ...), ...) in your own step."
        )

    def step_of(node: Any) -> str | None:
        return _STEPS.get(type(node).__name__)

    nodes = jax.tree.leaves(opt_state, is_leaf=lambda node: step_of(node) is not None)
    found = [node for node in nodes if isinstance(node, kind)]
    if len(found) != 1:
        steps = sorted({step for node in nodes if (step := step_of(node))})
        advice = "" if found or not steps else f" For this one, use mtlopt.{steps[0]}."
        raise ValueError(
            f"`optimizer` must have one `{name}` in it, got {len(found)}.{advice}"
        )
    return found[0]
