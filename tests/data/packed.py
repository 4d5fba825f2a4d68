"""Tiny random data set in the packed format."""

import io

import numpy as np
from PIL import Image


def random_images(count, side, seed=0):
    """Smooth images whose color depends on the label, and cyclic labels."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    ramp = np.linspace(0, 1, side)
    out = np.empty((count, side, side, 3), np.uint8)
    for i, label in enumerate(labels):
        shade = rng.uniform(0.3, 1.0, size=2)
        plane = np.outer(shade[0] * ramp + 0.1, shade[1] * ramp + 0.1)
        out[i] = 40
        out[i, :, :, label] = (255 * plane / plane.max()).astype(np.uint8)
    return out, labels.astype(np.uint8)


def encode(image):
    """JPEG bytes of one image."""
    out = io.BytesIO()
    Image.fromarray(image).save(out, "JPEG", quality=95, subsampling=0)
    return out.getvalue()


def write_packed(path, side, train=24, test=9):
    """Writes a packed file with classes red, green and blue."""
    arrays = {"class_names": np.array(["red", "green", "blue"])}
    for split, count, seed in (("train", train, 0), ("test", test, 1)):
        images, labels = random_images(count, side, seed)
        files = [encode(image) for image in images]
        sizes = [len(file) for file in files]
        arrays[f"{split}_jpeg"] = np.frombuffer(b"".join(files), np.uint8)
        arrays[f"{split}_offsets"] = np.concatenate([[0], np.cumsum(sizes)])
        arrays[f"{split}_labels"] = labels
    np.savez_compressed(path, **arrays)
