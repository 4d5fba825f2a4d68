"""Color words of images, and turns of their hue."""

import numpy as np

WORDS = ("red", "orange", "brown", "yellow", "green", "blue", "purple", "pink")
# An image has a color if more than this share of its drawn pixels has it.
SHARE = 0.5
# Upper ends of the hues of words, in degrees; red is what remains.
_HUES = (
    (14, "red"),
    (40, "orange"),
    (68, "yellow"),
    (165, "green"),
    (258, "blue"),
    (292, "purple"),
    (342, "pink"),
    (361, "red"),
)


def color_word(rgba: np.ndarray) -> str | None:
    """The color that most of an image has; None if there is no such color.

    Args:
      rgba: image uint8 [h, w, 4].
    """
    hue, saturation, value = hsv(rgba[..., :3][rgba[..., 3] > 127])
    colored = (saturation > 0.25) & (value > 0.2)
    if not len(hue) or colored.mean() < SHARE:
        return None
    words = np.full(hue.shape, "", dtype="<U6")
    low = 0
    for high, word in _HUES:
        words[(hue >= low) & (hue < high)] = word
        low = high
    words[(hue >= 12) & (hue < 45) & (value < 0.65)] = "brown"
    words[((hue < 14) | (hue >= 342)) & (saturation < 0.5) & (value > 0.7)] = "pink"
    found, counts = np.unique(words[colored], return_counts=True)
    best = counts.argmax()
    return str(found[best]) if counts[best] > SHARE * len(hue) else None


def turn_hue(rgba: np.ndarray, degrees: float) -> np.ndarray:
    """An image uint8 [h, w, 4] whose hues are turned; light and dark stay.

    The luma of every pixel is kept, so that yellow does not become a glaring blue.
    """
    rgb = rgba[..., :3].astype(np.float32) / 255
    luma = rgb @ np.array([0.299, 0.587, 0.114], np.float32)
    i = rgb @ np.array([0.596, -0.274, -0.322], np.float32)
    q = rgb @ np.array([0.211, -0.523, 0.312], np.float32)
    angle = np.deg2rad(degrees)
    turned_i = i * np.cos(angle) - q * np.sin(angle)
    turned_q = i * np.sin(angle) + q * np.cos(angle)
    back = np.array([[1, 0.956, 0.621], [1, -0.272, -0.647], [1, -1.106, 1.703]])
    turned = np.stack([luma, turned_i, turned_q], axis=-1) @ back.T
    whole = np.rint(np.clip(turned, 0, 1) * 255).astype(np.uint8)
    return np.concatenate([whole, rgba[..., 3:]], axis=-1)


def hsv(rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hue in degrees, saturation and value from 0 to 1, of uint8 [..., 3]."""
    x = rgb.astype(np.float32) / 255
    value, low = x.max(axis=-1), x.min(axis=-1)
    spread = np.maximum(value - low, 1e-6)
    r, g, b = x[..., 0], x[..., 1], x[..., 2]
    hue = np.select(
        [value == r, value == g],
        [((g - b) / spread) % 6, (b - r) / spread + 2],
        (r - g) / spread + 4,
    )
    saturation = np.where(value > 0, (value - low) / np.maximum(value, 1e-6), 0)
    return hue * 60, saturation, value
