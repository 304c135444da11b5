"""Keras 3: a model for the encoder and one for each head, called without state."""

import os

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras
from keras import layers

from tests.frameworks.common import (
    DROP,
    INPUTS,
    LABELS,
    MOMENTUM,
    OUTPUTS,
    WIDTH,
    Program,
    functional_trainer,
)


def make_models():
    keras.utils.set_random_seed(0)

    def regularise(z):
        return layers.Dropout(DROP)(layers.BatchNormalization(momentum=MOMENTUM)(z))

    x, z = keras.Input((INPUTS,)), keras.Input((WIDTH,))
    trunk = layers.Activation("tanh")(
        regularise(layers.Dense(WIDTH, use_bias=False)(x))
    )
    return {"trunk": keras.Model(x, trunk)} | {
        task: keras.Model(z, layers.Dense(outputs)(regularise(z)))
        for task, outputs in OUTPUTS.items()
    }


def make_program():
    models = make_models()

    def call(name, params, inputs, state):
        out, new = models[name].stateless_call(
            params[name], state[name], inputs, training=True
        )
        return out, {**state, name: new}

    def encode(params, x, key, state):
        return call("trunk", params, x, state)

    def head(task, params, z, key, state):
        return call(task, params, z, state)

    def values(variables):
        return [variable.value for variable in variables]

    return Program(
        {name: values(model.trainable_variables) for name, model in models.items()},
        {name: values(model.non_trainable_variables) for name, model in models.items()},
        LABELS,
        encode,
        head,
        lambda state, task: state[task],
    )


make_trainer = functional_trainer
