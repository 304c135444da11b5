"""`task_grad`: from loss functions to an oracle of per-task gradients.

A problem has one of four shapes. Each shape is reduced to a latent, a pullback from the
latent to the shared leaves, and T gradients with respect to the latent.

1. `encode` and one head per task: the latent is the value that `encode` returns.
2. One function that returns all losses: the latent is the vector of losses, and the T
   gradients are the rows of the identity. If the function marks a latent, the function
   is cut at the mark, which gives the first shape.
3. One loss per task without `encode`: the latent is the shared leaves themselves, and
   the pullback is the identity.
4. One task per sample: every sample has a latent and one task, so one array of the
   latents' shape holds the gradients of all tasks.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from mtlopt._checks import as_int, check_choice, checked
from mtlopt.forms import Stacked
from mtlopt.labels import SHARED, STACKED, Rules, check_task_names
from mtlopt.linearization import RowOptions
from mtlopt.make_problem import make_problem
from mtlopt.microbatches import Microbatches
from mtlopt.model_state import StateForm
from mtlopt.oracle import Oracle
from mtlopt.rows.map_tasks import Batching
from mtlopt.samples import Samplewise


def task_grad(
    losses: Mapping[str, Callable[..., Any]]
    | Stacked
    | Samplewise
    | Callable[..., Any],
    labels: Rules,
    *,
    encode: Callable[..., Any] | None = None,
    tasks: Sequence[str] | None = None,
    has_aux: bool = False,
    has_state: bool = False,
    state_labels: Rules | None = None,
    headless: Sequence[str] = (),
    batching: Batching = "auto",
    streaming: bool = False,
    layerwise: bool | Literal["auto"] = "auto",
    microbatches: int = 1,
    label_counts: Callable[..., Any] | None = None,
) -> Oracle:
    """Builds an oracle, a function that returns losses and gradients of all tasks.

    Call the oracle inside the `jax.jit` of the training step: it passes a linearised
    network to the optimizer, and XLA deletes the parts that the method does not use.

    Args:
      losses: the losses, in one of five forms.

        * With `encode`, a mapping from task to `loss(params, z, *args) -> scalar`. A
          loss may read only the leaves of its own task; everything that depends on
          shared leaves reaches it through `z`.
        * `stacked(head, num_tasks)`: one head function for all tasks.
        * Without `encode`, a mapping from task to `loss(params, *args) -> scalar`. Each
          loss uses the shared leaves in its own way, and the tasks have no common
          latent.
        * `samplewise(losses, task_of)`, if each sample of the batch belongs to one
          task. These losses have the first, second or last form of this list.
        * One function `losses(params, *args)` that returns all losses, as a mapping, a
          sequence, or a vector made by stacking scalars; `tasks` names the losses. If
          the function marks its latent (see `latent`), this is equivalent to the first
          form.
      labels: which leaf is shared and which belongs to which task, see `label_params`.
        Any function may read leaves labelled `"frozen"`, which may have any dtype. They
        have no gradients, and their updates are zeros.
      encode: `encode(params, *args) -> z`. The latent `z` is any pytree; `encode` reads
        shared leaves only.
      tasks: names of the tasks, if `losses` is one function or stacked heads.
      has_aux: whether `encode` and every loss return a pair `(value, aux)`.
      has_state: whether the last argument of a call is the model's state, any pytree of
        arrays, such as BatchNorm statistics. Every function takes the state as its last
        argument and returns `(value, state)` or `(value, state, aux)`; `grads.state` is
        the new state. The state changes once per call, or once per microbatch, whatever
        the number of tasks. All functions start from the same state, and a leaf belongs
        to the function that writes it. Leaves of an absent task's head do not change.
      state_labels: which task owns which leaf of the state, in any form of `labels`.
        Stacked heads need `state_labels`: give the label `"stacked"` to the leaves that
        have a leading task axis, and each head gets the entry of its task. A function
        that returns all losses needs `state_labels` if it writes state and tasks may be
        absent. Use the name of a task to label the leaves that must not change while
        the task is absent.
      headless: tasks that have no parameters of their own, if other tasks have some.
      batching: how the T backward passes run: `"unroll"`, `"vmap"`, `"map"`
        or a number of tasks at a time; `"auto"` chooses by platform and number of
        tasks.
      streaming: whether to recompute rows (the tasks' gradients) instead of keeping
        them. Methods that need only inner products of rows then use memory for two
        gradients instead of T. Streaming needs `encode`, one function that returns all
        losses, or `samplewise`.
      layerwise: whether to compute inner products and combinations of rows layer by
        layer, without computing the gradient of the layer's weights for each task. The
        result is exact. This saves work and memory for dense kernels that have more
        inputs and outputs than the batch has samples. With True, each leaf that needs
        fewer operations this way is computed layer by layer; with False, no leaf is.
        `"auto"` is True on one CPU device and False elsewhere. Use False for a batch
        that is split across several devices. `Oracle.explain` shows the choice for each
        leaf.
      microbatches: number k of equal parts into which the first of `args` is cut along
        the leading axis of its leaves, so pass the batch as one pytree. Part i contains
        the batch's samples i, i + k, i + 2 k, and so on. Typed PRNG keys among the
        other arguments are folded with the index of the part (legacy uint32 keys are
        not). The model's state is passed on from part to part. Aux gets a leading axis
        of parts; for an aux with one entry per sample, `[parts, samples, ...]`,
        exchange the first two axes to get the batch's order. `losses`, `heads` and
        `losses_at` run on the whole batch.
      label_counts: `label_counts(*args)` returns how many labels each task has in a
        part, as `[tasks]` or as a mapping from task to number. Pass it for losses that
        are means over the labelled samples. Here `args` exclude the model's state. By
        default all parts count equally; with `samplewise`, the default for a part is
        the sum of its sample weights.

    Returns:
      An `Oracle`, which is frozen and hashable.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if an argument has a wrong value; at the first call with new shapes of
        the parameters, if labels, leaves and functions do not agree.

    Examples:
      >>> import jax.numpy as jnp
      >>> import mtlopt
      >>> params = {"trunk": jnp.array([1.0, 2.0]), "up": 3.0, "down": 4.0}
      >>> oracle = mtlopt.task_grad(
      ...     {
      ...         "up": lambda params, z, x: params["up"] * z,
      ...         "down": lambda params, z, x: -params["down"] * z,
      ...     },
      ...     {"trunk": "shared", "up": "up", "down": "down"},
      ...     encode=lambda params, x: jnp.vdot(params["trunk"], x),
      ... )
      >>> grads = oracle(params, jnp.array([1.0, 1.0]))
      >>> grads.losses
      Array([  9., -12.], dtype=float32)
      >>> grads.jacobian()["trunk"]
      Array([[ 3.,  3.],
             [-4., -4.]], dtype=float32)
    """
    if isinstance(batching, str):
        check_choice("batching", batching, ("auto", "unroll", "vmap", "map"))
    else:
        batching = as_int("batching", batching)
    microbatches = as_int("microbatches", microbatches)
    if streaming and microbatches > 1:
        raise ValueError(
            "`streaming` must be False with several microbatches, got True: rows (the "
            "tasks' gradients) are summed over the parts and must be kept. Methods in "
            "latent space need no rows."
        )
    if layerwise not in (True, False, "auto"):
        raise ValueError(
            f"`layerwise` must be True, False or 'auto', got {layerwise!r}."
        )
    if streaming and layerwise is True:
        raise ValueError(
            "`layerwise` must be False or 'auto' with streaming=True, got True: "
            "layerwise=True keeps a factor of every task's gradient, but streaming "
            "keeps nothing."
        )
    options = RowOptions(batching, streaming, layerwise)
    if state_labels is not None and not has_state:
        raise ValueError("`state_labels` must be None without has_state=True.")
    state = None
    if has_state:
        of_samples = isinstance(losses, Samplewise)
        state = StateForm(has_aux, state_labels, of_samples)
    problem = make_problem(losses, encode, tasks, has_aux, options, state)
    check_task_names(problem.tasks)
    if isinstance(state_labels, list | tuple):  # names of tasks, or a list of labels
        for name in state_labels:
            if isinstance(name, str):
                check_choice("state_labels", name, (*problem.tasks, SHARED, STACKED))
    for name in headless:
        check_choice("headless", name, problem.tasks)
    if microbatches > 1:
        label_counts = checked(label_counts, "`label_counts`", first="batch")
        label_counts = label_counts or problem.label_counts
        problem = Microbatches(problem, microbatches, label_counts, has_state)
    return Oracle(problem, labels, tuple(headless), has_state)
