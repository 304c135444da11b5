"""What XLA computes: facts that do not depend on the machine."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mtlopt

NUM_TASKS, SIZE, WIDTH = 8, 64, 256
TASKS = tuple(f"t{i}" for i in range(NUM_TASKS))
SHAPES = {"first": (WIDTH, WIDTH), "second": (WIDTH, WIDTH), "third": (WIDTH, WIDTH)}
PARAMS = {
    "trunk": {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()},
    "heads": {task: np.zeros(WIDTH, np.float32) for task in TASKS},
}
LABELS = {"trunk": "shared", **{f"heads/{task}": task for task in TASKS}}


def encode(params, batch):
    z = batch[0]
    for weight in params["trunk"].values():
        z = jnp.tanh(z @ weight)
    return z


def make_loss(task):
    index = TASKS.index(task)

    def loss(params, z, batch):
        return jnp.mean((z @ params["heads"][task] - batch[1][:, index]) ** 2)

    return loss


LOSSES = {task: make_loss(task) for task in TASKS}


def make_batch(size=SIZE):
    return np.zeros((size, WIDTH)), np.zeros((size, NUM_TASKS))


def flops(function, *args):
    return jax.jit(function).lower(*args).compile().cost_analysis()["flops"]


def cost_of_update(oracle, params, tx):
    """FLOPs of the gradients and what a transform makes of them."""

    def run(params, batch):
        return tx.update(oracle(params, batch), tx.init(params), params)

    return flops(run, params, make_batch())


@functools.cache
def plain_step(size=SIZE):
    """FLOPs of the summed loss's value and gradient."""

    def summed(params, batch):
        z = encode(params, batch)
        return sum(loss(params, z, batch) for loss in LOSSES.values())

    return flops(jax.value_and_grad(summed), PARAMS, make_batch(size))


def step(tx, present=None, **options):
    present = None if present is None else np.array(present)
    oracle = mtlopt.task_grad(LOSSES, LABELS, encode=encode, **options)

    def run(params, batch):
        grads = oracle(params, batch, present=present)
        updates, state = tx.update(grads, tx.init(params), params)
        return grads.losses, updates, state

    return flops(run, PARAMS, make_batch())


def test_weighting_costs_a_plain_step():
    """chain(weighting, sum_tasks) <= 1.01 of the summed loss, at T = 8."""
    for weighting in (mtlopt.weight_by_dwa(8), mtlopt.weight_by_uncertainty(8)):
        tx = optax.chain(weighting, mtlopt.sum_tasks(8))
        assert step(tx) <= 1.01 * plain_step()
    assert step(mtlopt.sum_tasks(8)) <= 1.001 * plain_step()
    assert step(mtlopt.mean_tasks(8)) <= 1.01 * plain_step()


IN_LATENT_SPACE = ("mgda_ub", "aligned_mtl_ub")


@pytest.fixture(scope="module")
def ordinary():
    """FLOPs of steps without the branches that look at the rows again.

    They run if squares are no numbers, or if rows nearly depend on each other, and XLA
    counts both.
    """
    methods = {name: mtlopt.METHODS[name].make(8) for name in IN_LATENT_SPACE}
    methods["left out"] = mtlopt.leave_out(mtlopt.mgda(8), TASKS[2:])
    jax.clear_caches()  # of programs with both branches, and below of those without
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.lax, "cond", lambda _, usual, again, *args: usual(*args))
        found = {name: step(method) for name, method in methods.items()}
    jax.clear_caches()
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", IN_LATENT_SPACE)
def test_latent_space_costs_a_plain_step(name, ordinary):
    assert ordinary[name] <= 1.04 * plain_step()


@pytest.mark.slow
def test_parameter_space_costs_a_pullback_per_task():
    """Else the two tests above would show nothing: 1 + 2 T instead of 3 passes."""
    assert step(mtlopt.aligned_mtl(8)) > 4 * plain_step()


@pytest.mark.slow
def test_tasks_that_are_left_out_cost_no_pullback(ordinary):
    """Two of eight are seen: two backward passes over the trunk instead of eight."""
    assert ordinary["left out"] <= 2.1 * plain_step()


@functools.cache
def rows_step(present):
    """FLOPs of a step that makes all rows once."""
    return step(mtlopt.aligned_mtl(8), present, layerwise=False)


@pytest.mark.slow
@pytest.mark.parametrize("behind", ["sum_tasks", "mean_tasks", "aligned_mtl"])
@pytest.mark.parametrize("present", [None, (True,) * 8])
def test_rows_that_a_weighting_reads_are_made_once(behind, present):
    """What comes behind combines them: T backward passes, not T + 1 or 2 T."""
    weightings = [mtlopt.weight_by_excess(8, LABELS)] * 2
    tx = optax.chain(*weightings, mtlopt.METHODS[behind].make(8))
    assert step(tx, present) <= 1.09 * rows_step(present)


def test_gradnorm_costs_a_plain_step():
    """With norms in the latent: heads of one task each go backward once."""
    tx = optax.chain(mtlopt.weight_by_gradnorm(8), mtlopt.sum_tasks(8))
    assert step(tx) <= 1.02 * plain_step()


def test_gradnorm_costs_a_plain_step_with_stacked_heads():
    """Norms need no inner products of different rows, but squares in three units."""
    params = {"trunk": PARAMS["trunk"], "heads": np.zeros((40, WIDTH))}

    def head(params, z, task, batch):
        del task
        return jnp.mean((z @ params["heads"] - batch[1][:, 0]) ** 2)

    oracle = mtlopt.task_grad(
        mtlopt.stacked(head, 40),
        {"trunk": "shared", "heads": "stacked"},
        encode=encode,
    )

    tx = optax.chain(mtlopt.weight_by_gradnorm(40), mtlopt.sum_tasks(40))
    plain = cost_of_update(oracle, params, mtlopt.sum_tasks(40))
    assert cost_of_update(oracle, params, tx) <= 1.09 * plain


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["independent", "vector"])
def test_gradnorm_makes_the_rows_once(shape):
    """Without a latent: T backward passes, not T for the norms and one for the sum."""
    losses = {
        task: lambda params, batch, loss=loss: loss(
            params, encode(params, batch), batch
        )
        for task, loss in LOSSES.items()
    }
    options = {}
    if shape == "vector":
        each, options = losses, {"tasks": TASKS}

        def losses(params, batch):
            return {task: loss(params, batch) for task, loss in each.items()}

    oracle = mtlopt.task_grad(losses, LABELS, **options)

    tx = optax.chain(mtlopt.weight_by_gradnorm(8), mtlopt.sum_tasks(8))
    rows = cost_of_update(oracle, PARAMS, mtlopt.aligned_mtl(8))
    assert cost_of_update(oracle, PARAMS, tx) <= 1.01 * rows


def test_blocks_cost_less_than_a_step():
    """The heads' block runs the encoder forward only: a third of a plain step."""
    oracle = mtlopt.task_grad(LOSSES, LABELS, encode=encode)

    def block(name):
        return flops(functools.partial(oracle.block, name), PARAMS, make_batch())

    assert block("task") <= 0.45 * plain_step()
    assert block("shared") <= 1.001 * plain_step()


@pytest.mark.parametrize("form", ["latent", "independent", "vector", "stacked"])
def test_a_task_known_to_be_absent_costs_nothing(form):
    """With seven of eight absent: one task's pass, not its head beside seven others."""
    trunk = {"trunk": {"first": PARAMS["trunk"]["first"]}}
    wide = {task: np.zeros((WIDTH, WIDTH), np.float32) for task in TASKS}
    params = trunk | {"heads": wide}

    def loss(head, z):
        return jnp.mean((z @ head) ** 2)

    def whole(task):
        return lambda params, x: loss(params["heads"][task], encode(params, [x]))

    if form == "latent":
        oracle = mtlopt.task_grad(
            {t: lambda p, z, x, t=t: loss(p["heads"][t], z) for t in TASKS},
            LABELS,
            encode=lambda params, x: encode(params, [x]),
        )
    elif form == "independent":
        oracle = mtlopt.task_grad({task: whole(task) for task in TASKS}, LABELS)
    elif form == "vector":
        oracle = mtlopt.task_grad(
            lambda *args: [whole(task)(*args) for task in TASKS], LABELS, tasks=TASKS
        )
    else:
        params = trunk | {"heads": np.stack(list(wide.values()))}
        oracle = mtlopt.task_grad(
            mtlopt.stacked(lambda p, z, task, x: loss(p["heads"], z), NUM_TASKS),
            {"trunk": "shared", "heads": "stacked"},
            encode=lambda params, x: encode(params, [x]),
            tasks=TASKS,
        )

    def alone(shared, head, x):
        return loss(head, encode({"trunk": shared}, [x]))

    tx = mtlopt.mean_tasks(NUM_TASKS)
    present = {task: task == "t3" for task in TASKS}
    x = make_batch()[0]

    def run(params, x):
        return tx.update(oracle(params, x, present=present), tx.init(params))[0]

    one = flops(
        jax.value_and_grad(alone, argnums=(0, 1)), trunk["trunk"], wide["t3"], x
    )
    assert flops(run, params, x) <= 1.2 * one


def test_one_task_costs_one_head():
    """`oracle.task` runs one of T heads, here wide ones."""
    z = np.zeros((SIZE, WIDTH), np.float32)
    params = {"w": np.zeros(WIDTH), "heads": np.zeros((8, WIDTH, WIDTH))}

    def head(params, z, task):
        return jnp.mean((z @ params["heads"]) ** 2)

    oracle = mtlopt.task_grad(
        mtlopt.stacked(head, 8),
        {"w": "shared", "heads": "stacked"},
        encode=lambda params: z * params["w"],
    )
    one = flops(lambda params, task: oracle.task(task, params).grad, params, 3)
    everyone = flops(lambda params: oracle(params).total(), params)
    assert one <= 0.3 * everyone


@pytest.mark.slow
def test_unread_rows_are_deleted_with_microbatches():
    """Four passes over a part (forward twice), not 2 T + 2: dead sums leave the loop.

    XLA counts the body of a loop once, so this compares one part with one batch of the
    part's size.
    """
    part = plain_step(SIZE // 4)
    assert step(mtlopt.sum_tasks(8), microbatches=4) <= 1.4 * part
    assert step(mtlopt.METHODS["mgda_ub"].make(8), microbatches=4) <= 1.5 * part
    assert step(mtlopt.aligned_mtl(8), microbatches=4) > 4 * part


@pytest.mark.slow
def test_streaming_keeps_no_rows():
    """Temporary memory of a few gradients instead of T."""

    def temporary(**options):
        oracle = mtlopt.task_grad(LOSSES, LABELS, encode=encode, **options)
        tx = mtlopt.aligned_mtl(8)

        def run(params, batch):
            return tx.update(oracle(params, batch), tx.init(params), params)[0]

        compiled = jax.jit(run).lower(PARAMS, make_batch()).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    gradient = sum(leaf.nbytes for leaf in jax.tree.leaves(PARAMS))
    assert temporary(streaming=True) < 4 * gradient
    assert temporary() > 6 * gradient


def test_streaming_holds_the_latent_rows_once():
    """They are all that is large: 16 rows of a wide latent of a small network."""
    num_tasks, batch, width = 16, 64, 128
    params = {"w": np.ones((8, width)), "heads": np.ones((num_tasks, width))}
    oracle = mtlopt.task_grad(
        mtlopt.stacked(
            lambda p, z, task, x: jnp.mean((z @ p["heads"]) ** 2), num_tasks
        ),
        {"w": "shared", "heads": "stacked"},
        encode=lambda p, x: jnp.tanh(x @ p["w"]),
        streaming=True,
    )
    tx = mtlopt.upgrad(num_tasks)

    def run(params, x):
        return tx.update(oracle(params, x), tx.init(params), params)[0]

    compiled = jax.jit(run).lower(params, np.ones((batch, 8))).compile()
    latent = 4 * num_tasks * batch * width
    assert compiled.memory_analysis().temp_size_in_bytes < 1.6 * latent


@pytest.mark.slow
def test_nothing_calls_the_host():
    """No callback in a program of all methods, here with a trunk of one layer."""
    params = PARAMS | {"trunk": {"first": PARAMS["trunk"]["first"]}}
    oracle = mtlopt.task_grad(LOSSES, LABELS, encode=encode)

    def run(params, batch):
        grads = oracle(params, batch)
        updates = {}
        for name, method in mtlopt.METHODS.items():
            tx = method.make(8, labels=LABELS)
            updates[name] = tx.update(grads, tx.init(params), params)
        return updates

    program = str(jax.make_jaxpr(run)(params, make_batch()))
    assert "callback" not in program
