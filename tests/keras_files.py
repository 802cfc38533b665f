"""Files as Keras writes them."""

import h5py
import numpy as np

import reference


# How each Keras writes one layer's weights: group, names of weights, shapes.
def write_keras(path, variables, layers, *, version=3, optimizer=False, extra=None):
    """An .h5 file as model.save of Keras 2 or 3 writes it."""
    keras = {"kernel": "kernel", "bias": "bias", "scale": "gamma"}
    keras |= {"mean": "moving_mean", "var": "moving_variance"}
    with h5py.File(path, "w") as file:
        file.attrs["keras_version"] = "3.15.1" if version == 3 else "2.12.0"
        group = file.create_group("model_weights")
        group.attrs["layer_names"] = [*layers, "flatten"]
        group.create_group("flatten").attrs["weight_names"] = []
        if optimizer:
            file.create_group("optimizer_weights")["m"] = np.zeros(3)
        for name in layers:
            collections = [
                variables[c].get(name, {}) for c in ("params", "batch_stats")
            ]
            weights = {k: v for c in collections for k, v in c.items()}
            is_norm = "scale" in weights
            order = ["scale", "bias", "mean", "var"] if is_norm else ["kernel", "bias"]
            names = []
            for key in order:
                label = "beta" if is_norm and key == "bias" else keras[key]
                full = f"sequential/{name}/{label}" + (":0" if version == 2 else "")
                group.create_group(name) if name not in group else None
                group[name][full] = weights[key]
                names.append(full)
            if extra == name:
                group[name]["alpha"] = np.zeros(3)
                names.append("alpha")
            group[name].attrs["weight_names"] = names


LAYERS = [name for name in reference.CIFAR_LAYERS if name != "pool"]
