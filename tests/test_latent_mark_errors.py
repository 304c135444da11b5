"""A mark in the wrong place is an error that says what to do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mtlopt

SMALL = {"w": jnp.ones(2), "v": jnp.ones(2), "a": jnp.ones(2), "b": jnp.ones(2)}
SMALL_LABELS = {"w": "shared", "v": "shared", "a": "a", "b": "b"}
POINT = jnp.ones(2)


def pair(params, z, rest=0.0):
    return {"a": jnp.vdot(params["a"], z) + rest, "b": jnp.vdot(params["b"], z)}


def trunk(params, x):
    return params["w"] * jnp.sin(params["v"] * x)


def small(function, labels=SMALL_LABELS, **options):
    return mtlopt.task_grad(function, labels, tasks=("a", "b"), **options)


def marked_by_each(params, x):
    """Each loss marks what it is given."""
    z = trunk(params, x)
    return {name: jnp.vdot(params[name], mtlopt.latent(z)) for name in ("a", "b")}


def branch(params, x):
    return jax.lax.cond(x[0] > 0, mtlopt.latent, lambda z: z, trunk(params, x))


def loop(params, x):
    def body(z, _):
        return mtlopt.latent(jnp.sin(z)), None

    return jax.lax.scan(body, trunk(params, x), length=2)[0]


def with_rule(params, x):
    rule = jax.custom_jvp(lambda z: mtlopt.latent(jnp.sin(z)))
    rule.defjvp(lambda primals, tangents: (rule(*primals), 2 * tangents[0]))
    return rule(trunk(params, x))


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            lambda p, x: pair(p, mtlopt.latent(trunk(p, x)), jnp.sum(p["v"])),
            r"task 'a' reads the shared leaf `v`, not through mtlopt.latent, so the "
            r"leaf's gradient.*mark the leaf as well, as in "
            r"h, w = mtlopt.latent\(\(h, w\)\)",
        ),
        (
            lambda p, x: pair(
                p, mtlopt.latent(trunk(p, x)), jnp.sum(jnp.sin(p["v"] * x))
            ),
            "task 'a' reads the shared leaf `v`, not through mtlopt.latent",
        ),
        (
            lambda p, x: pair(p, mtlopt.latent(trunk(p, x) * p["a"])),
            "the program before mtlopt.latent reads `a`, which is labelled 'a'",
        ),
        (
            lambda p, x: pair(p, mtlopt.latent(x)),
            "the program before mtlopt.latent reads no leaf that is labelled 'shared'",
        ),
        (
            lambda p, x: pair(p, mtlopt.latent(trunk(p, x)) * p["b"]),
            "task 'a' reads `b`, which is labelled 'b'",
        ),
        (
            lambda p, x: pair(p, mtlopt.latent(trunk(p, x) > 0)),
            "mtlopt.latent mark, at least one floating-point leaf",
        ),
        (
            lambda p, x: mtlopt.latent(trunk(p, x)) * jnp.stack([p["a"], p["b"]])[0],
            "must return a mapping or sequence of scalars, or a vector made by",
        ),
        (marked_by_each, "an array is marked twice by mtlopt.latent. Mark it once"),
        (
            lambda p, x: pair(p, branch(p, x)),
            "must not be inside a loop, a branch.*got a mark in `cond`.*its results",
        ),
        (
            lambda p, x: pair(p, loop(p, x)),
            "must not be inside a loop, a branch.*got a mark in `scan`",
        ),
        (
            lambda p, x: pair(p, jax.jit(with_rule)(p, x)),
            "its own derivative rule, got a mark in `custom_jvp_call`",
        ),
        (
            lambda p, x: pair(p, mtlopt.latent({"z": trunk(p, x), "name": "z"})["z"]),
            "`z` must be a pytree of arrays, got a leaf of type str",
        ),
        (
            lambda p, x: pair(p, mtlopt.latent([]) or trunk(p, x)),
            "`z` must have at least one array to mark",
        ),
    ],
)
def test_errors(function, message, jit):
    oracle = small(function)
    call = jax.jit(lambda p, x: oracle(p, x).losses) if jit else oracle
    with pytest.raises((ValueError, TypeError), match=message):
        call(SMALL, POINT)


def test_what_a_head_needs_of_a_shared_leaf_goes_through_the_mark():
    def function(params, x):
        z, v = mtlopt.latent((trunk(params, x), params["v"]))
        return pair(params, z, jnp.sum(v**2))

    def whole(task):
        def loss(params):
            return pair(params, trunk(params, POINT), jnp.sum(params["v"] ** 2))[task]

        return jax.grad(loss)(SMALL)["v"]

    found = small(function)(SMALL, POINT).jacobian()["v"]
    np.testing.assert_allclose(found, [whole("a"), whole("b")], rtol=1e-6)


def test_a_loss_may_be_a_parameter_itself():
    def function(params, x):
        z = mtlopt.latent(params["w"] * x)
        return -jnp.stack([params["a"], params["b"] * z])

    params = {"w": jnp.array(2.0), "a": jnp.array(3.0), "b": jnp.array(4.0)}
    oracle = small(function, {"w": "shared", "a": "a", "b": "b"})
    grads = oracle(params, 5.0)
    total = grads.total()
    np.testing.assert_allclose(grads.losses, [-3, -40])
    np.testing.assert_allclose([total[name] for name in "wab"], [-20, -1, -10])


def test_without_a_mark_there_is_no_latent():
    oracle = small(lambda p, x: pair(p, trunk(p, x)))
    grads = oracle(SMALL, POINT)
    with pytest.raises(
        ValueError, match=r"mark the latent with mtlopt.latent\(z\) in your"
    ):
        grads.in_latent_space()
    for call in (
        lambda: oracle.heads(SMALL, POINT, POINT),
        lambda: grads.losses_at(SMALL, POINT),
    ):
        with pytest.raises(ValueError, match=r"or an oracle of one function that"):
            call()
    summed = small(
        lambda p, x: pair(p, jnp.mean(jax.vmap(trunk, (None, 0))(p, x), axis=0)),
        microbatches=2,
    )(SMALL, jnp.ones((4, 2)))
    with pytest.raises(ValueError, match="latent space needs a latent"):
        summed.in_latent_space()


def test_a_given_latent_must_be_like_what_is_marked():
    oracle = small(lambda p, x: pair(p, mtlopt.latent(trunk(p, x))))
    with pytest.raises(ValueError, match="must have the structure that mtlopt"):
        oracle.heads(SMALL, (POINT, POINT), POINT)
    with pytest.raises(ValueError, match=r"mtlopt.latent marks.*\[2\], got.*\[3\]"):
        oracle.heads(SMALL, jnp.ones(3), POINT)


def test_encode_and_a_mark_exclude_each_other():
    with pytest.raises(ValueError, match=r"leave `encode` out and mark the latent"):
        small(lambda p, x: pair(p, mtlopt.latent(trunk(p, x))), encode=trunk)


def test_a_leaf_that_goes_round_the_mark_has_no_label():
    def function(params, x):
        return pair(params, mtlopt.latent(trunk(params, x)), jnp.sum(params["v"]))

    message = (
        r"reads `v`, which is shared. Read the result of mtlopt.latent.* mark the leaf"
    )
    with pytest.raises(ValueError, match=message):
        mtlopt.infer_labels(function, SMALL, POINT, tasks=("a", "b"))


def one(params, sample):
    return pair(params, mtlopt.latent(trunk(params, sample)))


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        (lambda p, x: pair(p, trunk(p, x)), {}, "samplewise losses must mark its lat"),
        (one, {"has_aux": True}, "`has_aux` and `has_state` must be left out if"),
        (one, {"encode": trunk}, "`encode`, `has_aux` and `has_state` must be"),
        (
            lambda p, x: pair(p, mtlopt.latent(trunk(p, x)), jnp.sum(p["v"])),
            {},
            "'a' reads the shared leaf `v`, not through mtlopt.latent",
        ),
    ],
)
def test_errors_of_one_task_per_sample(function, options, message):
    form = mtlopt.samplewise(function, task_of=lambda x: jnp.int32(x[0]))
    with pytest.raises(ValueError, match=message):
        small(form, **options)(SMALL, jnp.ones((3, 2)))
