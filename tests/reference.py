"""The networks in plain NumPy, and pruning by writing weights: the slow truth."""

import copy

import numpy as np


def conv(x, p):
    """3 x 3, stride 1, SAME."""
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    h, w = x.shape[1:3]
    y = np.zeros((*x.shape[:3], p["kernel"].shape[-1]))
    for i in range(3):
        for j in range(3):
            y += padded[:, i : i + h, j : j + w] @ p["kernel"][i, j].astype(float)
    return y + p.get("bias", 0)


def norm(x, p, s, epsilon):
    return (x - s["mean"]) / np.sqrt(s["var"] + epsilon) * p["scale"] + p["bias"]


def relu(x):
    return np.maximum(x, 0)


def pool(x):
    n, h, w, c = x.shape
    x = x[:, : h // 2 * 2, : w // 2 * 2]
    return x.reshape(n, h // 2, 2, w // 2, 2, c).max((2, 4))


def dense(x, p):
    return x @ p["kernel"].astype(float) + p["bias"]


def pair_cnn(variables, images):
    p, s = variables["params"], variables["batch_stats"]
    x = images / 255.0
    for i in (1, 2, 3):
        x = norm(conv(x, p[f"conv{i}"]), p[f"bn{i}"], s[f"bn{i}"], 1e-5)
        x = pool(relu(x))
    x = relu(dense(x.reshape(len(x), -1), p["dense1"]))
    return dense(x, p["dense2"])


CIFAR_LAYERS = """
conv2d conv2d_1 batch_normalization pool
conv2d_2 conv2d_3 batch_normalization_1 pool
conv2d_4 batch_normalization_2 conv2d_5 batch_normalization_3
conv2d_6 batch_normalization_4 pool
conv2d_7 batch_normalization_5 conv2d_8 batch_normalization_6
conv2d_9 batch_normalization_7 pool
conv2d_10 batch_normalization_8 conv2d_11 batch_normalization_9
conv2d_12 batch_normalization_10 pool
dense dense_1 dense_2 dense_3
""".split()


def cifar_vgg(variables, images):
    p, s = variables["params"], variables["batch_stats"]
    x = images / 255.0
    for name in CIFAR_LAYERS:
        if name == "pool":
            x = pool(x)
        elif name.startswith("conv"):
            x = relu(conv(x, p[name]))
        elif name.startswith("batch"):
            x = norm(x, p[name], s[name], 1e-3)
        else:
            x = dense(x.reshape(len(x), -1), p[name])
            x = x if name == "dense_3" else relu(x)
    return x


def cifar_resnet(variables, images):
    p, s = variables["params"], variables["batch_stats"]
    x = images / 255.0
    x = relu(norm(conv(x, p["conv"]), p["bn"], s["bn"], 1e-5))
    for name in sorted(name for name in p if name.startswith("stage")):
        q, t = p[name], s[name]
        step = 2 if "shortcut" in q else 1
        y = conv(x, q["conv1"])[:, ::step, ::step]
        y = relu(norm(y, q["bn1"], t["bn1"], 1e-5))
        y = norm(conv(y, q["conv2"]), q["bn2"], t["bn2"], 1e-5)
        if "shortcut" in q:
            x = x[:, ::2, ::2] @ q["shortcut"]["kernel"][0, 0].astype(float)
            x = norm(x, q["bn_shortcut"], t["bn_shortcut"], 1e-5)
        x = relu(x + y)
    return dense(x.mean((1, 2)), p["dense"])


def prune(variables, layer, channels, fill, mean=None):
    """Weights really written: kernel to 0, bias to 0, kept or set to the mean."""
    variables = copy.deepcopy(variables)
    p = variables["params"][layer]
    p["kernel"][..., channels] = 0
    if fill == "zero":
        p["bias"][channels] = 0
    if fill == "mean":
        p["bias"][channels] = mean[channels]
    return variables


def cross_entropy(logits, labels):
    """Mean over the images of -log softmax at the label; logits [..., N, C]."""
    return losses(logits, labels).mean(-1)


def losses(logits, labels):
    """-log softmax at the label; logits [..., N, C]."""
    shifted = logits - logits.max(-1, keepdims=True)
    log_share = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return -log_share[..., np.arange(len(labels)), labels]


def check_predictions(predictions, logits):
    """Equal, but where the two largest logits are closer than float32 sums round.

    Sums of a few thousand float32 products are right to about 1e-5 of their size.
    """
    expected = logits.argmax(-1)
    top = np.sort(logits, axis=-1)
    margin = top[..., -1] - top[..., -2]
    differs = predictions != expected
    assert (margin[differs] < 1e-4 * np.abs(logits).max()).all()
    assert differs.mean() < 0.01
