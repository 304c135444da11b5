"""Multi-task training of Flax NNX modules, in the style of NNX.

===========================================  =========================================
plain NNX                                    mtlopt
===========================================  =========================================
``grad_fn = nnx.value_and_grad(loss_fn)``    ``oracle = mtlopt.nnx.task_grad(losses,
                                             encode=encode)``
``loss, grads = grad_fn(model, batch)``      ``grads = oracle(model, batch)``
``nnx.Optimizer(model, tx, wrt=nnx.Param)``  ``mtlopt.nnx.Optimizer(model, tx,
                                             wrt=nnx.Param)``
``optimizer.update(model, grads)``           ``optimizer.update(model, grads)``
===========================================  =========================================
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

try:
    from flax import nnx
except ImportError as error:
    raise ImportError(
        "mtlopt.nnx needs Flax. Install it with: pip install 'mtlopt[models]'"
    ) from error

from mtlopt._checks import Checked, as_transform, by_task, checked
from mtlopt.forms import Stacked
from mtlopt.grad import check_no_grad
from mtlopt.labels import (
    FROZEN,
    SHARED,
    STACKED,
    UNKNOWN,
    Rules,
    label_params,
    leaf_paths,
    some_labels,
)
from mtlopt.make_oracle import task_grad as pure_task_grad
from mtlopt.make_problem import change_functions
from mtlopt.oracle import Oracle as PureOracle
from mtlopt.ownership import infer_labels
from mtlopt.samples import Samplewise
from mtlopt.step import update_of
from mtlopt.task_grads import TaskGrads

PyTree = Any


def task_grad(
    losses: Mapping[str, Callable[..., Any]]
    | Stacked
    | Samplewise
    | Callable[..., Any],
    labels: Rules | None = None,
    *,
    encode: Callable[..., Any] | None = None,
    wrt: Any = nnx.Param,
    has_aux: bool = False,
    **options: Any,
) -> "Oracle":
    """Builds an oracle for modules: it returns losses and gradients of all tasks.

    The function works like `mtlopt.task_grad`, with two differences. First, all
    functions take the module instead of parameters. Second, a call of the oracle
    changes the module's state, such as BatchNorm statistics and dropout counts, as
    `nnx.grad` does. The state changes once per call, or once per microbatch. If a
    function writes to parameters, as weight normalisation does, the parameters keep
    their old values.

    Args:
      losses: as in `mtlopt.task_grad`, such as a mapping from task to
        `loss(model, z, *args) -> scalar`.
      labels: rules on the paths of the parameters, see `label_params`, or labels from
        `label_modules`. If leaves have no rule, mtlopt finds their labels by tracing
        the functions (see `infer_labels`), so `{"trunk": "frozen"}` is enough.
      encode: `encode(model, *args) -> z`.
      wrt: which variables to train, as an NNX filter. All other variables get no
        gradients: `wrt=nnx.LoRAParam` trains only the adapters of a network and leaves
        its other weights unchanged.
      has_aux: whether functions return a pair `(value, aux)`.
      **options: further options of `mtlopt.task_grad`. If `losses` is one function,
        pass `tasks`, the names of the tasks. `has_state` is always on.

    Returns:
      An `Oracle` that takes the module in place of parameters.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if an argument has a wrong value; at the first call with a new kind of
        module, if labels, leaves and functions do not agree.

    Examples:
      >>> import jax.numpy as jnp, mtlopt, optax
      >>> from flax import nnx
      >>> class Net(nnx.Module):
      ...     def __init__(self, rngs):
      ...         self.trunk = nnx.Linear(3, 8, rngs=rngs)
      ...         self.norm = nnx.BatchNorm(8, rngs=rngs)
      ...         self.left = nnx.Linear(8, 1, rngs=rngs)
      ...         self.right = nnx.Linear(8, 1, rngs=rngs)
      >>> encode = lambda model, x: nnx.relu(model.norm(model.trunk(x)))
      >>> left = lambda model, z, x: jnp.mean((model.left(z)[:, 0] - x[:, 0]) ** 2)
      >>> right = lambda model, z, x: jnp.mean((model.right(z)[:, 0] - x[:, 1]) ** 2)
      >>> oracle = mtlopt.nnx.task_grad({"left": left, "right": right}, encode=encode)
      >>> model = Net(nnx.Rngs(0))
      >>> tx = optax.chain(mtlopt.aligned_mtl(2), optax.adam(1e-2))
      >>> optimizer = mtlopt.nnx.Optimizer(model, tx, wrt=nnx.Param)
      >>> @nnx.jit
      ... def step(model, optimizer, x):
      ...     grads = oracle(model, x)
      ...     optimizer.update(model, grads)
      ...     return oracle.named(grads.losses)
      >>> losses = step(model, optimizer, jnp.eye(3))
      >>> sorted(losses), bool(jnp.any(model.norm.mean[...] != 0))
      (['left', 'right'], True)
    """
    return Oracle(losses, labels, encode, wrt, has_aux, options)


class Pure(NamedTuple):
    """A module as arrays and functions of these arrays, for `mtlopt.train_step`.

    Attributes:
      params: the trained variables, copied, so that you may donate them.
      state: all other variables, copied as well.
      oracle: an `mtlopt.Oracle`; call it as `oracle(params, *args, state)`.
      merge: function from parameters and state to a module.
    """

    params: PyTree
    state: PyTree
    oracle: PureOracle
    merge: Callable[[PyTree, PyTree], Any]


class Oracle:
    """Computes the per-task gradients of modules; `task_grad` builds it.

    Attributes:
      tasks: names of the tasks, in the order of the losses.
    """

    def __init__(
        self,
        losses: Any,
        labels: Rules | None,
        encode: Callable[..., Any] | None,
        wrt: Any,
        has_aux: bool,
        options: dict[str, Any],
    ) -> None:
        self._losses, self._encode = losses, encode
        self._rules, self._wrt = labels, wrt
        self._has_aux, self._options = has_aux, options
        # Arguments are checked here, before there is a module.
        given = sorted({"has_state", "state_labels"} & options.keys())
        if given:
            raise TypeError(
                f"`{given[0]}` must be left out: the state is the module's state, and "
                "each part belongs to the task whose parameters are nearest."
            )
        arrays = self._task_grad(losses, encode, SHARED, SHARED)
        self.tasks, self._stacked = arrays.tasks, arrays.problem.stacked
        self._oracles: dict[nnx.GraphDef[Any], PureOracle] = {}

    @property
    def num_tasks(self) -> int:
        """The number of tasks."""
        return len(self.tasks)

    def __call__(self, model: Any, *args: Any, present: Any = None) -> TaskGrads:
        """Returns losses and gradients of all tasks, and updates the module's state.

        Args:
          model: a module.
          *args: arguments of the functions.
          present: as in `mtlopt.Oracle.__call__`.

        Returns:
          `TaskGrads`, with losses `[tasks]`.

        Raises:
          TypeError: if an argument holds a variable of Flax NNX.
          ValueError: if labels and functions do not agree, or a function adds a
            variable to the module.
        """
        graphdef, params, state = _split(model, self._wrt)
        for leaf in jax.tree.leaves(args, is_leaf=_is_variable):
            if _is_variable(leaf):
                raise TypeError(
                    "the arguments after `model` must be arrays, got a variable of "
                    "Flax NNX. Make the module that holds the variable, such as "
                    "nnx.Rngs, a part of `model`, so that the variable can change."
                )
        oracle = self._pure(graphdef, params, args, state)
        grads = oracle(params, *args, state, present=present)
        nnx.update(model, grads.state)
        return grads

    def losses(self, model: Any, *args: Any) -> jax.Array:
        """Returns the losses `[tasks]` of a forward pass that changes no state."""
        graphdef, params, state = _split(model, self._wrt)
        return self._pure(graphdef, params, args, state).losses(params, *args, state)

    def labels(self, model: Any, *args: Any) -> PyTree:
        """Returns the labels of a module's parameters.

        Args:
          model: a module.
          *args: arguments of the functions; needed only if mtlopt must find the labels.
        """
        graphdef, params, state = _split(model, self._wrt)
        oracle = self._pure(graphdef, params, args, state)
        return label_params(params, oracle.labels)

    def named(self, values: PyTree, axis: int = 0) -> dict[str, PyTree]:
        """Returns the entries of arrays with a task axis, see `mtlopt.Oracle.named`."""
        return by_task(self.tasks, values, axis)

    def pure(self, model: Any, *args: Any) -> Pure:
        """Returns the module as arrays, and an oracle that takes these arrays.

        Args:
          model: a module. If its leaves are shapes, as from `nnx.eval_shape`, the
            result has shapes too.
          *args: arguments of the functions; needed only if mtlopt must find the labels.

        Examples:
          >>> import jax, jax.numpy as jnp, mtlopt, optax
          >>> from flax import nnx
          >>> model = nnx.Dict(a=nnx.Linear(2, 1, rngs=nnx.Rngs(0)))
          >>> loss = lambda model, x: jnp.mean(model["a"](x) ** 2)
          >>> oracle = mtlopt.nnx.task_grad({"a": loss}, "shared")
          >>> params, state, oracle, merge = oracle.pure(model)
          >>> tx = optax.chain(mtlopt.sum_tasks(1), optax.sgd(0.1))
          >>> step = jax.jit(mtlopt.train_step(oracle, tx), donate_argnums=0)
          >>> run, output = step(mtlopt.Run(params, tx.init(params), state), jnp.eye(2))
          >>> merge(run.params, run.state)["a"](jnp.eye(2)).shape
          (2, 1)
        """
        graphdef, params, state = _split(model, self._wrt)
        oracle = self._pure(graphdef, params, args, state)
        params, state = jax.tree.map(_copy, (params, state))
        return Pure(params, state, oracle, lambda *states: nnx.merge(graphdef, *states))

    def _pure(
        self,
        graphdef: nnx.GraphDef[Any],
        params: PyTree,
        args: tuple[Any, ...],
        state: PyTree,
    ) -> PureOracle:
        """Returns the oracle of modules with this graph; finds its labels once."""
        if graphdef in self._oracles:
            return self._oracles[graphdef]

        def change(function: Any, name: str, *task: int) -> Any:
            check = functools.partial(
                checked, first="model", has_latent=self._encode is not None
            )
            return self._of_arrays(check(function, name, *task), graphdef, name)

        losses, encode = change_functions(self._losses, self._encode, change)
        labels = some_labels(params, {} if self._rules is None else self._rules)
        if UNKNOWN in jax.tree.leaves(labels):
            labels = self._find_labels(losses, encode, params, args, state)
        owners = _state_owners(params, labels, state, self.num_tasks)
        oracle = self._task_grad(losses, encode, labels, owners)
        self._oracles[graphdef] = oracle
        return oracle

    def _find_labels(
        self,
        losses: Any,
        encode: Callable[..., Any] | None,
        params: PyTree,
        args: tuple[Any, ...],
        state: PyTree,
    ) -> PyTree:
        """Returns labels from rules and from the program of all functions."""

        def guess(leaf: Any) -> str:
            is_stack = self._stacked and jnp.shape(leaf)[:1] == (self.num_tasks,)
            return STACKED if is_stack else SHARED

        try:
            return infer_labels(
                losses,
                params,
                *args,
                state,
                encode=encode,
                tasks=self._options.get("tasks"),
                has_aux=self._has_aux,
                has_state=True,
                state_labels=jax.tree.map(guess, state),
                rules=self._rules,
            )
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"{type(error).__name__}: {error}\nThe error was raised at the first "
                "call, which traces all functions together to find the labels. If no "
                "function has a mistake, pass arguments that contain all that the "
                "functions read, or pass the labels of all parameters as `labels`."
            ) from error

    def _task_grad(
        self,
        losses: Any,
        encode: Callable[..., Any] | None,
        labels: Rules,
        state_labels: Rules,
    ) -> PureOracle:
        return pure_task_grad(
            losses,
            labels,
            encode=encode,
            has_aux=self._has_aux,
            has_state=True,
            state_labels=state_labels,
            **self._options,
        )

    def _of_arrays(
        self, function: Callable[..., Any], graphdef: nnx.GraphDef[Any], name: str
    ) -> Callable[..., Any]:
        """Makes `f(params, ..., state) -> (value, state)` from `f(model, ...)`."""

        def run(params: PyTree, *args: Any) -> Any:
            *others, state = args
            model = nnx.merge(graphdef, params, state)
            out = function(model, *others)
            _, _, new = _split(model, self._wrt)
            added = {path for path, _ in leaf_paths(new)}
            added -= {path for path, _ in leaf_paths(state)}
            if added:
                raise ValueError(
                    f"{name} adds `{min(added)}` to the module, but this addition "
                    "would be lost. Return it as a second value, with has_aux=True."
                )
            state = new
            if not self._has_aux:
                return out, state
            if not isinstance(out, tuple) or len(out) != 2:
                raise ValueError(
                    f"with has_aux=True, {name} must return a pair (value, aux), got "
                    f"{type(out).__name__}."
                )
            value, aux = out
            return value, state, aux

        return Checked(run)


class Optimizer(nnx.Optimizer):
    """An `nnx.Optimizer` for a whole chain, with weightings and an aggregator.

    Its `update(model, grads)` takes the result of an `Oracle`, or ordinary gradients.

    Args:
      model: a module.
      tx: a chain with an aggregator.
      wrt: which variables to train, as in `task_grad`.

    Examples:
      >>> import jax.numpy as jnp, mtlopt, optax
      >>> from flax import nnx
      >>> model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
      >>> tx = optax.chain(mtlopt.sum_tasks(1), optax.sgd(0.1))
      >>> optimizer = mtlopt.nnx.Optimizer(model, tx, wrt=nnx.Param)
      >>> loss = lambda model, x: jnp.mean(model(x) ** 2)
      >>> oracle = mtlopt.nnx.task_grad({"a": loss}, "shared")
      >>> _ = optimizer.update(model, oracle(model, jnp.eye(2)))
      >>> int(optimizer.step[...])
      1
    """

    def __init__(self, model: Any, tx: Any, *, wrt: Any, **options: Any) -> None:
        super().__init__(model, as_transform("tx", tx), wrt=wrt, **options)

    def update(self, model: Any, grads: Any, /, **kwargs: Any) -> PyTree:
        """Updates the module and the optimizer's state.

        Heads of absent tasks do not move if the chain ends with `per_label`.

        Args:
          model: the module.
          grads: the result of an `Oracle`; ordinary gradients are passed to
            `nnx.Optimizer`.
          **kwargs: further arguments for the transforms.

        Returns:
          The updates.

        Raises:
          TypeError: if the chain has no aggregator, or `grads` are not gradients of the
            model.
          ValueError: if the gradients were computed with another `wrt` or `model`.
        """
        check_no_grad(grads, "mtlopt.nnx.Optimizer.update")
        if isinstance(model, TaskGrads):
            raise TypeError(
                "`model` must be a module, got TaskGrads. Call update(model, grads)."
            )
        params = nnx.as_pure(nnx.state(model, self.wrt))
        structure = jax.tree.structure(params)
        if not isinstance(grads, TaskGrads):
            if jax.tree.structure(nnx.as_pure(grads)) != structure:
                raise TypeError(
                    "`grads` must be the result of an oracle of mtlopt.nnx or of "
                    f"nnx.grad, got {type(grads).__name__}."
                )
            return super().update(model, grads, **kwargs)
        if structure != grads.partition.treedef:
            raise ValueError(
                "`wrt` of the optimizer must be the `wrt` of mtlopt.nnx.task_grad, and "
                "`model` must be the module of the gradients: the parameters differ."
            )
        opt_state, kwargs = nnx.as_pure((self.opt_state, kwargs))
        updates, opt_state = update_of(self.tx, grads, opt_state, params, **kwargs)
        nnx.update(model, optax.apply_updates(params, updates))
        nnx.update(self.opt_state, nnx.state(opt_state))
        self.step[...] += 1
        return updates


def label_modules(
    model: Any, wrt: Any = nnx.Param, **heads: Any | Sequence[Any]
) -> PyTree:
    """Labels parameters by the modules that hold them.

    Args:
      model: a module.
      wrt: which variables are trained.
      **heads: for each task, its module (a part of `model`), or several modules.

    Returns:
      Labels of the parameters; parameters outside of the heads are shared.

    Raises:
      ValueError: if a head is not a part of the model.

    Examples:
      >>> import mtlopt
      >>> from flax import nnx
      >>> rngs = nnx.Rngs(0)
      >>> model = nnx.List([nnx.Linear(2, 2, rngs=rngs) for _ in range(3)])
      >>> labels = mtlopt.nnx.label_modules(model, left=model[1], right=model[2])
      >>> [labels[i]["kernel"] for i in range(3)]
      ['shared', 'left', 'right']
    """
    paths = {id(node): path for path, node in nnx.iter_graph(model)}
    rules = {"*": SHARED}
    for task, modules in heads.items():
        for module in modules if isinstance(modules, list | tuple) else [modules]:
            if id(module) not in paths:
                raise ValueError(
                    f"the head of {task!r} must be a part of `model`, got a "
                    f"{type(module).__name__} that is not in it."
                )
            rules["/".join(map(str, paths[id(module)]))] = task
    return label_params(nnx.as_pure(nnx.state(model, wrt)), rules)


def _copy(leaf: Any) -> Any:
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return leaf
    return jax.device_put(leaf, may_alias=False)


def _is_variable(node: Any) -> bool:
    return isinstance(node, nnx.Variable)


def _split(model: Any, wrt: Any) -> tuple[nnx.GraphDef[Any], PyTree, PyTree]:
    """Returns the graph, the parameters and the other state, without boxes."""
    graphdef, params, state = nnx.split(model, wrt, ...)
    if not jax.tree.leaves(params):
        raise ValueError(
            f"`model` must be a module with variables of `wrt`, {wrt}, got a "
            f"{type(model).__name__} without such variables. The module is the first "
            "argument, before the batch."
        )
    for part in (params, state):
        for node in jax.tree.leaves(part, is_leaf=_is_variable):
            value = node.get_raw_value() if _is_variable(node) else node
            if not jax.tree_util.all_leaves([value]):
                raise ValueError(
                    "each variable of `model` must hold one array, got a variable that "
                    f"holds a {type(value).__name__}. Use nnx.Dict or nnx.List of "
                    "variables."
                )
    return graphdef, nnx.as_pure(params), nnx.as_pure(state)


def _state_owners(
    params: PyTree, labels: PyTree, state: PyTree, num_tasks: int
) -> PyTree:
    """Returns who owns each leaf of the state.

    The search starts at the module of the leaf and goes outward to the first module
    that has moving parameters. If all these parameters have the same label, the leaf
    gets this label; otherwise the leaf is shared.
    """
    paths = [path.split("/") for path, _ in leaf_paths(params)]
    names = jax.tree.leaves(labels)
    owners = []
    for path, leaf in leaf_paths(state):
        parts, owner = path.split("/"), SHARED
        for length in range(len(parts) - 1, 0, -1):
            near = {
                name
                for other, name in zip(paths, names, strict=True)
                if other[:length] == parts[:length] and name != FROZEN
            }
            if near:
                owner = near.pop() if len(near) == 1 else SHARED
                break
        is_stack = jnp.shape(leaf)[:1] == (num_tasks,)
        owners.append(SHARED if owner == STACKED and not is_stack else owner)
    return jax.tree.structure(state).unflatten(owners)
