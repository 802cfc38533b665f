"""Keras models like the recipes', with weights as linen has them.

Keras is imported by the functions: most tests that know this module do without.
"""

import pytest


def vgg(variables):
    """The model of cifar_vgg, which ends with a softmax."""
    keras = pytest.importorskip("keras")
    layers, params = keras.layers, variables["params"]
    model = keras.Sequential([keras.Input((32, 32, 3))])
    names = {"conv2d": 0, "batch_normalization": 0, "dense": 0}

    def name(base):
        names[base] += 1
        return f"{base}_{names[base] - 1}".removesuffix("_0")

    for convs, norms in ((2, 1), (2, 1), (3, 3), (3, 3), (3, 3)):
        for i in range(convs):
            own = name("conv2d")
            width = len(params[own]["bias"])
            model.add(layers.Conv2D(width, 3, padding="same", activation="relu",
                                    name=own))  # fmt: skip
            if i >= convs - norms:
                model.add(layers.BatchNormalization(name=name("batch_normalization")))
        model.add(layers.MaxPooling2D())
        model.add(layers.Dropout(0.1))
    model.add(layers.Flatten())
    for activation in ("relu", "relu", "relu", "softmax"):
        own = name("dense")
        model.add(layers.Dense(len(params[own]["bias"]), activation, name=own))
    return filled(model, variables)


def pair(variables, shape):
    """The model of a PairCNN, for images of a shape."""
    keras = pytest.importorskip("keras")
    layers, params = keras.layers, variables["params"]
    model = keras.Sequential([keras.Input(shape)])
    for i in (1, 2, 3):
        width = len(params[f"conv{i}"]["bias"])
        model.add(layers.Conv2D(width, 3, padding="same", name=f"conv{i}"))
        model.add(layers.BatchNormalization(epsilon=1e-5, name=f"bn{i}"))
        model.add(layers.ReLU())
        model.add(layers.MaxPooling2D())
    model.add(layers.Flatten())
    first, last = (len(params[f"dense{i}"]["bias"]) for i in (1, 2))
    model.add(layers.Dense(first, activation="relu", name="dense1"))
    model.add(layers.Dense(last, name="dense2"))
    return filled(model, variables)


def filled(model, variables):
    """The model, its layers given the arrays of linen's of the same names."""
    params, statistics = variables["params"], variables["batch_stats"]
    for layer in model.layers:
        if layer.name in statistics:
            own = params[layer.name] | statistics[layer.name]
            layer.set_weights([own[key] for key in ("scale", "bias", "mean", "var")])
        elif layer.name in params:
            layer.set_weights([params[layer.name][key] for key in ("kernel", "bias")])
    return model
