"""`task_grad`: from loss functions to an oracle of per-task gradients.

All problem shapes become one: a latent, a pullback from it to the shared leaves, and T
gradients with respect to it.

1. `encode` and one head per task: the latent is what `encode` returns.
2. One function that returns all losses: the latent is the vector of losses, its rows
   the identity. If it marks a latent, it is cut there and is the first shape.
3. One loss per task without `encode`: the latent is the shared leaves themselves, the
   pullback the identity.
4. One task per sample: every sample has a latent, and the gradients of all tasks with
   respect to them fit in one.
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
    """Builds the oracle of a problem's per-task gradients.

    Call it inside the `jax.jit` of the training step: it hands a linearised network to
    the optimizer, and XLA deletes what the chosen method does not read.

    Args:
      losses: the losses, in one of five forms.

        * With `encode`, a mapping from task to `loss(params, z, *args) -> scalar`. A
          loss may read its own task's leaves only; what it needs of shared leaves
          reaches it in `z`.
        * `stacked(head, num_tasks)`: one such function for all tasks.
        * Without `encode`, a mapping from task to `loss(params, *args) -> scalar`, each
          with its own use of the shared leaves. Tasks have no common latent.
        * `samplewise(losses, task_of)`, with losses in the first, second or last form,
          where each sample of the batch belongs to one task.
        * One function `losses(params, *args)` that returns all losses, as a mapping, a
          sequence, or a vector made by stacking scalars; name them by `tasks`. It may
          mark where encoder and heads meet, see `latent`: then it is the first form.
      labels: who owns which leaf, see `label_params`. Leaves labelled `"frozen"` are
        read by any function and may have any dtype; they have no rows, and updates of
        zeros.
      encode: `encode(params, *args) -> z`, any pytree; reads shared leaves only.
      tasks: names of the tasks, where `losses` is one function or stacked heads.
      has_aux: whether `encode` and every loss return a pair `(value, aux)`.
      has_state: whether the last argument of a call is the model's state, such as
        BatchNorm statistics, any pytree of arrays. Every function takes it last and
        returns `(value, state)`, or `(value, state, aux)`; `grads.state` is the new
        one, which moves once, or once for each of several microbatches, whatever the
        number of tasks. All functions start from the same state, and a leaf belongs to
        the one that writes it; leaves of a head whose task is absent keep their values.
      state_labels: rules on the paths of the state, as in `labels`, where functions do
        not tell who owns a leaf: `"stacked"` for leaves with a leading task axis, of
        which a stacked head sees its own entry; and, if one function returns all
        losses, a task's name for leaves that must not change if that task is absent
        (needed if the function writes state and tasks may be absent).
      headless: tasks that have no parameters of their own although others do.
      batching: how the T pullbacks are run: `"unroll"`, `"vmap"`, `"map"` or a number
        of tasks at a time; `"auto"` chooses by platform and number of tasks.
      streaming: recompute rows instead of keeping them, so that methods on the Gramian
        need memory for two gradients instead of T. Needs `encode`, one
        function that returns all losses, or `samplewise`.
      layerwise: whether inner products and combinations of rows are taken layer by
        layer, without a weight gradient per task: exact, and less work and memory for
        dense kernels wider than the batch has rows. True for each leaf for which it is
        fewer operations, False for none; `"auto"` is True on one CPU device and False
        elsewhere. Leave it False for a batch that lies in parts on several devices.
        `Oracle.explain` tells which leaf went which way.
      microbatches: number of equal parts in which the first of `args` is evaluated, cut
        along the leading axis of its leaves: pass the batch as one pytree. Part i has
        rows i, i + k, i + 2 k, ... of k parts. Typed PRNG keys among the other
        arguments are folded with the index of the part (legacy uint32 keys are not);
        the model's state goes from part to part; aux gets a leading axis of parts (what
        it says of single samples, `[parts, rows, ...]`, is in the batch's order with
        these two axes exchanged). `losses`, `heads` and `losses_at` run on the whole
        batch.
      label_counts: `label_counts(*args) -> [tasks]`, or a mapping from task to number:
        how many labels each task has in a part, for losses that are means over the
        labelled samples. `args` come without the model's state. Default: equal parts;
        of `samplewise` losses their weights.

    Returns:
      An `Oracle`: frozen and hashable.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if an argument has a wrong value; later, at the first call with such
        parameters, if labels, leaves and functions do not agree.

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
            "`streaming` must be False with several microbatches, got True: rows are "
            "summed over the parts and must be kept. Methods in latent space need none."
        )
    if layerwise not in (True, False, "auto"):
        raise ValueError(
            f"`layerwise` must be True, False or 'auto', got {layerwise!r}."
        )
    if streaming and layerwise is True:
        raise ValueError(
            "`layerwise` must be False or 'auto' with streaming=True, got True: it "
            "keeps a factor of every task's gradient, streaming keeps nothing."
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
    if isinstance(state_labels, list | tuple):  # names, or labels of a list
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
