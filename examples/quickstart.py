"""Train a small network on scikit-learn's handwritten digits and record every step.

Needs no GPU, no account and no download: ``python examples/quickstart.py [folder]``.
"""

import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

import periflow_otel as pf

STEPS = 1000
EVALUATE_EVERY = 100
SAVE_EVERY = 250

rng = np.random.default_rng(0)


def new_weights(*sizes):
    """Return the weights of a network with these numbers of units."""
    return [rng.normal(0, (2 / n) ** 0.5, (n, m)).astype("f4") for n, m in pairwise(sizes)]


def forward(weights, images):
    """Return the input of every layer, and the chance of every digit."""
    inputs = [images]
    for w in weights[:-1]:
        inputs.append(np.maximum(inputs[-1] @ w, 0))
    logits = inputs[-1] @ weights[-1]
    chances = np.exp(logits - logits.max(axis=1, keepdims=True))
    return inputs, chances / chances.sum(axis=1, keepdims=True)


def learn(weights, momenta, images, labels, rate):
    """Do one step of gradient descent; return the loss before it."""
    inputs, chances = forward(weights, images)
    picked = np.arange(len(labels)), labels
    loss = -np.log(chances[picked] + 1e-9).mean()
    chances[picked] -= 1
    error = chances / len(labels)
    for i in reversed(range(len(weights))):
        momenta[i] *= 0.9
        momenta[i] += inputs[i].T @ error
        error = (error @ weights[i].T) * (inputs[i] > 0)
        weights[i] -= rate * momenta[i]
    return loss


def shifted(images):
    """Move all images by up to one pixel and add noise, so that there is more to learn."""
    offset = tuple(rng.integers(-1, 2, size=2))
    moved = np.roll(images.reshape(-1, 8, 8), offset, axis=(1, 2)).reshape(-1, 64)
    return (moved + rng.normal(0, 0.3, moved.shape)).astype("f4")


def main(folder):
    """Train, evaluate now and then, and save a checkpoint every so many steps."""
    folder.mkdir(parents=True, exist_ok=True)
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype("f4")
    weights = new_weights(64, 1024, 1024, 10)
    momenta = [np.zeros_like(w) for w in weights]

    pf.init(total_train_steps=STEPS, local_log_name=str(folder / "metrics.log"))
    for step in range(1, STEPS + 1):
        with pf.span("data"):
            batch = rng.integers(0, 1500, size=384)
            inputs = shifted(images[batch])
        with pf.train_step():
            rate = 0.05 * (1 - step / (STEPS + 1))
            loss = learn(weights, momenta, inputs, labels[batch], rate)
            pf.metric({"loss": loss, "learning_rate": rate})
        if step % EVALUATE_EVERY == 0:
            with pf.span("evaluation"):
                found = forward(weights, images[1500:])[1].argmax(axis=1)
                pf.metric({"accuracy": (found == labels[1500:]).mean()})
        if step % SAVE_EVERY == 0:
            np.savez(folder / f"checkpoint-{step}.npz", *weights)
            pf.upload_checkpoint()


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "quickstart"))
