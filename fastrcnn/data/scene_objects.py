"""The things that lie in a drawn scene: five classes of object and five kinds of clutter, painted as small sprites.

Every painter works in the object's own frame, x to the right and y down, the object within a circle of radius 1.3
around the origin; ``Canvas`` rotates, mirrors and scales it. Shapes are flat paint: ``shade`` then gives them rounded
edges, light from the scene's lamp and a highlight, so that everything in a scene is lit from the same side.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import cv2
import numpy as np

Random: TypeAlias = np.random.Generator
Colour: TypeAlias = tuple[float, float, float]  # BGR, 0 .. 255

_REACH = 1.35  # radii from a sprite's middle to its side
_SHIFT = 4  # OpenCV draws at 1 / 2**_SHIFT pixels


@dataclass
class Sprite:
    """A painted thing: colour uint8 [s, s, 3] BGR, alpha float32 [s, s] in 0 .. 1."""

    colour: np.ndarray
    alpha: np.ndarray


class Canvas:
    """Flat paint for one sprite. Colours may spill over the outline: only ``mask`` says what belongs to the object."""

    def __init__(self, radius: float, angle: float, mirror: bool, base: Colour) -> None:
        side = int(np.ceil(2 * _REACH * radius) + 4) | 1  # odd: the middle is the centre of a pixel
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        self.radius = radius
        self._matrix = turn @ np.diag([-radius if mirror else radius, radius])
        self._middle = (side - 1) / 2
        self.colour = np.empty((side, side, 3), np.uint8)
        self.colour[:] = base
        self.mask = np.zeros((side, side), np.uint8)

    def fill(self, outline: np.ndarray, colour: Colour | None = None, mask: int | None = None) -> None:
        """Fills a closed outline [n, 2] with a colour, or adds it to the shape (mask 255; a hole: 0), or both."""
        points = [self._pixels(outline)]
        if colour is not None:
            cv2.fillPoly(self.colour, points, colour, cv2.LINE_AA, _SHIFT)
        if mask is not None:
            cv2.fillPoly(self.mask, points, mask, cv2.LINE_AA, _SHIFT)

    def line(self, path: np.ndarray, width: float, colour: Colour | None = None, mask: int | None = None) -> None:
        """Draws an open path [n, 2] of a width in radii, at least one pixel."""
        points, thickness = [self._pixels(path)], max(1, round(width * self.radius))
        if colour is not None:
            cv2.polylines(self.colour, points, False, colour, thickness, cv2.LINE_AA, _SHIFT)
        if mask is not None:
            cv2.polylines(self.mask, points, False, mask, thickness, cv2.LINE_AA, _SHIFT)

    def frame(self) -> tuple[np.ndarray, np.ndarray]:
        """The object's own x and y at every pixel, two float arrays [s, s]."""
        axis = np.arange(len(self.mask)) - self._middle
        inverse = np.linalg.inv(self._matrix)
        x, y = axis[None, :], axis[:, None]
        return inverse[0, 0] * x + inverse[0, 1] * y, inverse[1, 0] * x + inverse[1, 1] * y

    def _pixels(self, points: np.ndarray) -> np.ndarray:
        pixels = np.asarray(points, float) @ self._matrix.T + self._middle
        return np.round(pixels * 2**_SHIFT).astype(np.int32)


def shade(canvas: Canvas, lamp: np.ndarray, roundness: float, gloss: float) -> Sprite:
    """Lights flat paint as if its edges were rounded off.

    Args:
        canvas: the paint. lamp: unit vector [3] towards the light, z towards the viewer.
        roundness: width of the rounded edge in radii. gloss: strength of the highlight, 0 .. 1.
    """
    width = max(1.5, roundness * canvas.radius)
    inside = cv2.distanceTransform((canvas.mask > 127).astype(np.uint8), cv2.DIST_L2, 3)
    ramp = 1 - np.minimum(inside / width, 1)
    height = cv2.GaussianBlur(width * np.sqrt(1 - ramp * ramp), (0, 0), max(0.8, 0.06 * canvas.radius))
    slope_x = cv2.Sobel(height, cv2.CV_32F, 1, 0, scale=0.125)
    slope_y = cv2.Sobel(height, cv2.CV_32F, 0, 1, scale=0.125)
    upright = 1 / np.sqrt(1 + slope_x * slope_x + slope_y * slope_y)
    facing = np.maximum((lamp[2] - lamp[0] * slope_x - lamp[1] * slope_y) * upright, 0).astype(np.float32)
    highlight = 190 * gloss * np.power(facing, 24)
    lit = canvas.colour * (0.42 + 0.72 * facing)[..., None] + highlight[..., None]
    return Sprite(np.clip(lit, 0, 255).astype(np.uint8), canvas.mask.astype(np.float32) / 255)


# --- outlines and colours ---------------------------------------------------------------------------------------------


def arc(x: float, y: float, rx: float, ry: float, start: float = 0, end: float = 360, n: int = 40) -> np.ndarray:
    """Points [n, 2] on an ellipse, degrees clockwise from the right."""
    t = np.radians(np.linspace(start, end, n))
    return np.stack([x + rx * np.cos(t), y + ry * np.sin(t)], 1)


def blob(rng: Random, wobble: float, n: int = 48) -> np.ndarray:
    """A random smooth closed outline [n, 2] around the origin, about 1 in radius."""
    t = np.linspace(0, 2 * np.pi, n, endpoint=False)
    radius = np.ones(n)
    for k in (2, 3, 5):
        radius += wobble / k * rng.normal() * np.cos(k * t + rng.uniform(0, 6.3))
    return np.stack([np.cos(t), np.sin(t)], 1) * np.clip(radius, 0.5, 1.3)[:, None]


def colour(hue: float, saturation: float, value: float) -> Colour:
    """BGR of a hue in degrees, saturation and value in 0 .. 1."""
    hsv = np.array([[[hue % 360 / 2, 255 * saturation, 255 * value]]], np.uint8)
    b, g, r = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)[0, 0]
    return float(b), float(g), float(r)


def _any_colour(rng: Random) -> Colour:
    return colour(rng.uniform(0, 360), rng.uniform(0.45, 0.85), rng.uniform(0.6, 0.95))


def _dark(paint: Colour, factor: float) -> Colour:
    return paint[0] * factor, paint[1] * factor, paint[2] * factor


def _pale(paint: Colour, factor: float, white: float) -> Colour:
    blue, green, red = (min(255.0, channel * factor + white) for channel in paint)
    return blue, green, red


# --- the objects: each paints one example of its class ----------------------------------------------------------------


def ball(rng: Random, radius: float, lamp: np.ndarray) -> Sprite:
    """A beach ball: segments of two colours and white that meet in a pole, seen from anywhere."""
    canvas = Canvas(radius, rng.uniform(0, 2 * np.pi), False, (245, 245, 245))
    x, y = canvas.frame()
    z = np.sqrt(np.maximum(1 - x * x - y * y, 0))
    tilt = rng.uniform(0.25, 1.2)  # radians from the viewer to the pole
    up, side = z * np.cos(tilt) + y * np.sin(tilt), y * np.cos(tilt) - z * np.sin(tilt)
    segment = np.floor((np.arctan2(side, x) / (2 * np.pi) + 0.5) * 6).astype(int) % 6
    first, second = _any_colour(rng), _any_colour(rng)
    paints = np.array([first, (245, 245, 245), second, (245, 245, 245), first, (245, 245, 245)])
    canvas.colour[:] = np.where((up > 0.965)[..., None], second, paints[segment])
    canvas.fill(arc(0, 0, 1, 1), mask=255)
    return shade(canvas, lamp, roundness=1.0, gloss=0.8)


def fish(rng: Random, radius: float, lamp: np.ndarray) -> Sprite:
    """A reef fish from the side, orange or blue: forked tail, two fins, white stripes, gill and eye."""
    hue = rng.choice([rng.uniform(8, 48), rng.uniform(190, 235)])
    body = colour(hue, rng.uniform(0.65, 0.9), rng.uniform(0.65, 0.95))
    fin = colour(hue + rng.uniform(-15, 15), rng.uniform(0.6, 0.9), rng.uniform(0.5, 0.8))
    deep = rng.uniform(0.42, 0.6)
    canvas = Canvas(radius, rng.normal(0, 0.5), rng.random() < 0.5, body)
    t = np.linspace(0, 1, 24)
    back = np.stack([-1.1 + 1.7 * t, -deep * np.sin(np.pi * t**0.75) ** 0.9], 1)
    outline = np.concatenate([back, back[::-1] * [1, -1]])
    tail = np.array([[0.45, 0], [1.15, -0.55], [0.98, 0], [1.15, 0.55]])
    top = np.array([[-0.5, -0.8 * deep], [-0.1, -1.75 * deep], [0.35, -1.2 * deep], [0.3, -0.3 * deep]])
    for part in (tail, top, top * [0.6, -0.9]):
        canvas.fill(part, fin, mask=255)
    canvas.fill(outline, body, mask=255)
    for x in np.arange(-0.42, 0.42, rng.uniform(0.24, 0.4)):
        tall = 0.86 * deep * np.sin(np.pi * ((x + 1.1) / 1.7) ** 0.75)
        canvas.line(arc(x, 0, 0.12, tall, -90, 90), 0.1, (240, 240, 240))
    canvas.line(arc(-0.78, 0, 0.16, 0.6 * deep, -75, 75), 0.05, _dark(body, 0.55))
    canvas.fill(arc(-0.83, -0.13, 0.11, 0.11), (250, 250, 250))
    canvas.fill(arc(-0.85, -0.13, 0.055, 0.055), (20, 20, 20))
    canvas.line(np.array([[-1.1, 0.06], [-0.95, 0.1]]), 0.05, _dark(body, 0.45))
    return shade(canvas, lamp, roundness=0.3, gloss=0.5)


def leaf(rng: Random, radius: float, lamp: np.ndarray) -> Sprite:
    """A leaf with a stalk, a pointed tip, toothed edges and veins, from green to autumn red."""
    hue = rng.choice([rng.uniform(75, 135), rng.uniform(5, 50)])
    paint = colour(hue, rng.uniform(0.6, 0.85), rng.uniform(0.5, 0.85))
    canvas = Canvas(radius, rng.uniform(0, 2 * np.pi), rng.random() < 0.5, paint)
    t, wide = np.linspace(0, 1, 56), rng.uniform(0.46, 0.66)
    teeth = 1 + rng.uniform(0, 0.13) * (t * rng.integers(8, 13) % 1 - 0.5)
    edge = wide * np.sin(np.pi * t**0.72) ** 0.85 * teeth
    x, bend = -0.8 + 2.0 * t, rng.uniform(-0.2, 0.2) * (t - 0.5) ** 2 * 2
    canvas.fill(np.concatenate([np.stack([x, bend - edge], 1), np.stack([x, bend + edge], 1)[::-1]]), mask=255)
    canvas.fill(np.concatenate([np.stack([x, bend - edge], 1), np.stack([x, bend], 1)[::-1]]), _dark(paint, 0.84))
    vein = _pale(paint, 0.55, 110)
    for k in range(6, 46, 8):
        for side in (-1, 1):
            end = min(k + 10, 55)
            path = np.array([[x[k], bend[k]], [x[end], bend[end] + side * 0.86 * edge[end]]])
            canvas.line(path, 0.03, vein)
    stalk = np.array([[-1.22, rng.uniform(-0.15, 0.15)], [-0.8, bend[0]]])
    canvas.line(stalk, 0.09, _dark(paint, 0.7), mask=255)
    canvas.line(np.stack([x, bend], 1)[:54], 0.05, vein)
    return shade(canvas, lamp, roundness=0.16, gloss=0.25)


def mug(rng: Random, radius: float, lamp: np.ndarray) -> Sprite:
    """A mug from slightly above: handle, opening with coffee, and a decoration (bands, dots or none)."""
    glaze, accent = _any_colour(rng), _any_colour(rng)
    if rng.random() < 0.3:
        glaze = (225.0, 232.0, 235.0)
    canvas = Canvas(radius, rng.normal(0, 0.18), rng.random() < 0.5, glaze)
    tall, foot = rng.uniform(0.75, 1.0), rng.uniform(0.58, 0.7)
    canvas.line(arc(0.58, 0.06, 0.48, 0.45 * tall, -95, 95), 0.17, glaze, mask=255)
    rim = arc(-0.1, -tall + 0.1, 0.72, 0.24)
    base = arc(-0.1, tall - 0.16, foot, 0.22, 0, 180)
    body = np.concatenate([[[0.62, -tall + 0.1]], base, [[-0.82, -tall + 0.1]]])
    canvas.fill(body, mask=255)
    x, _ = canvas.frame()
    turned = 1.06 - 0.34 * np.square((x + 0.1) / 0.72)  # a cylinder's sides are darker
    canvas.colour[:] = np.clip(canvas.colour * np.clip(turned, 0.55, 1.1)[..., None], 0, 255).astype(np.uint8)
    style = rng.integers(3)
    if style == 0:
        for y in (0.0, 0.26)[: rng.integers(1, 3)]:
            canvas.line(arc(-0.1, y, 0.7, 0.2, 8, 172), 0.13, accent)
    elif style == 1:
        for u in (-0.6, -0.2, 0.2, 0.6):
            for y in (-0.15, 0.28):
                canvas.fill(arc(-0.1 + 0.68 * u, y + 0.2 * np.sqrt(1 - u * u), 0.085, 0.1), accent)
    canvas.fill(rim, mask=255)
    canvas.fill(rim, _pale(glaze, 1.1, 12))
    canvas.fill(arc(-0.1, -tall + 0.1, 0.61, 0.175), _dark(glaze, 0.5))
    canvas.fill(arc(-0.1, -tall + 0.14, 0.55, 0.125), (28, 48, 82))
    return shade(canvas, lamp, roundness=0.14, gloss=0.6)


def mushroom(rng: Random, radius: float, lamp: np.ndarray) -> Sprite:
    """A toadstool from the side: a spotted cap on a pale stem."""
    cap = colour(rng.choice([rng.uniform(-12, 14), rng.uniform(20, 40)]), rng.uniform(0.7, 0.9), rng.uniform(0.6, 0.85))
    pale = colour(40, rng.uniform(0.08, 0.2), rng.uniform(0.82, 0.95))
    canvas = Canvas(radius, rng.normal(0, 0.35), rng.random() < 0.5, cap)
    slim, tall = rng.uniform(0.18, 0.28), rng.uniform(0.75, 0.95)
    stem = np.array([[-slim, 0], [-1.35 * slim, 1.05], [1.35 * slim, 1.05], [slim, 0]])
    stem = np.concatenate([stem[:1], arc(0, 1.0, 1.4 * slim, 0.14, 180, 0, 12), stem[3:]])
    canvas.fill(stem, pale, mask=255)
    canvas.line(arc(0, 0.3, 1.15 * slim, 0.1, 0, 180, 12), 0.09, _dark(pale, 0.8))
    under = arc(0, 0.02, 1.0, 0.2, 0, 180)
    canvas.fill(under, _dark(pale, 0.78), mask=255)
    for u in np.linspace(-0.85, 0.85, 9):  # gills
        canvas.line(np.array([[0.3 * u, 0.02], [u, 0.02 + 0.19 * np.sqrt(1 - u * u)]]), 0.03, _dark(pale, 0.55))
    dome = np.concatenate([arc(0, 0.04, 1.05, tall, 180, 360), arc(0, 0.04, 1.05, 0.14, 0, 180)])
    canvas.fill(dome, cap, mask=255)
    for u, v, r in ((-0.58, 0.36, 0.13), (0.02, 0.72, 0.17), (0.12, 0.22, 0.12), (0.6, 0.4, 0.14), (-0.28, 0.12, 0.08)):
        jitter = rng.normal(0, 0.04, 2)
        canvas.fill(arc(u + jitter[0], 0.04 - tall * v + jitter[1], r, 0.85 * r), (238, 242, 245))
    return shade(canvas, lamp, roundness=0.4, gloss=0.5)


# --- clutter: things that are no object -------------------------------------------------------------------------------


def pebble(rng: Random, radius: float, lamp: np.ndarray) -> Sprite:
    """A smooth stone of one colour."""
    paint = colour(rng.uniform(0, 360), rng.uniform(0, 0.25), rng.uniform(0.3, 0.75))
    canvas = Canvas(radius, rng.uniform(0, 6.3), False, paint)
    canvas.fill(blob(rng, 0.25) * [0.95, rng.uniform(0.6, 0.9)], mask=255)
    return shade(canvas, lamp, roundness=0.8, gloss=0.25)


def stick(rng: Random, radius: float, lamp: np.ndarray) -> Sprite:
    """A pencil or twig: a bent bar, sometimes with a tip of another colour."""
    paint = _any_colour(rng)
    canvas = Canvas(radius, rng.uniform(0, 6.3), False, paint)
    x = np.linspace(-1.25, 1.25, 16)
    path = np.stack([x, rng.uniform(-0.12, 0.12) * x * x], 1)
    canvas.line(path, rng.uniform(0.07, 0.16), mask=255)
    canvas.line(path[: rng.integers(1, 5)], 0.3, _dark(paint, 0.45))
    return shade(canvas, lamp, roundness=0.08, gloss=0.4)


def scrap(rng: Random, radius: float, lamp: np.ndarray) -> Sprite:
    """A torn piece of paper with ruled lines."""
    paint = colour(rng.uniform(0, 360), rng.uniform(0.03, 0.3), rng.uniform(0.75, 0.98))
    canvas = Canvas(radius, rng.uniform(0, 6.3), False, paint)
    corners = np.array([[-1, -0.75], [1, -0.75], [1, 0.75], [-1, 0.75]]) * rng.uniform(0.7, 1.0, (4, 2))
    canvas.fill(corners, mask=255)
    for y in np.arange(-0.6, 0.7, 0.3):
        canvas.line(np.array([[-1, y], [1, y]]), 0.03, _dark(paint, 0.7))
    return shade(canvas, lamp, roundness=0.05, gloss=0.1)


def band(rng: Random, radius: float, lamp: np.ndarray) -> Sprite:
    """A rubber band: a thin closed loop."""
    canvas = Canvas(radius, rng.uniform(0, 6.3), False, _any_colour(rng))
    loop = blob(rng, 0.5) * [1, rng.uniform(0.5, 0.9)]
    canvas.line(np.concatenate([loop, loop[:2]]), rng.uniform(0.05, 0.1), mask=255)
    return shade(canvas, lamp, roundness=0.06, gloss=0.4)


def splash(rng: Random, radius: float, lamp: np.ndarray) -> Sprite:
    """A flat ragged stain of paint with a few drops."""
    canvas = Canvas(radius, rng.uniform(0, 6.3), False, _any_colour(rng))
    canvas.fill(blob(rng, 0.6) * 0.6, mask=255)
    for angle in rng.uniform(0, 6.3, 5):
        size = rng.uniform(0.04, 0.12)
        canvas.fill(arc(np.cos(angle), np.sin(angle), size, size, n=12), mask=255)
    return shade(canvas, lamp, roundness=0.1, gloss=0.5)


Painter: TypeAlias = Callable[[Random, float, np.ndarray], Sprite]
OBJECTS: dict[str, Painter] = {"ball": ball, "fish": fish, "leaf": leaf, "mug": mug, "mushroom": mushroom}
CLUTTER: tuple[Painter, ...] = (pebble, stick, scrap, band, splash)
