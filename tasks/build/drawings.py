"""Draws boxes, masks and traces of a record on its picture."""

import colorsys
import io

import numpy as np
from PIL import Image
from PIL import ImageDraw

from tasks.build import records

Color = tuple[int, int, int]

# How much of a mask's colour covers the picture.
_MASK_OPACITY = 0.45
_LINE_WIDTH = 2
_DOT_RADIUS = 4
# Hues that follow each other are far apart: steps of the golden ratio.
_HUE_STEP = 0.618034
# A trace runs from blue to red, as a hue.
_FIRST_HUE, _LAST_HUE = 0.62, 0.0


def place_color(number: int) -> Color:
  """The colour of a place in the record."""
  return _color(number * _HUE_STEP % 1.0)


def utterance_color(number: int, count: int) -> Color:
  """The colour of the number-th of some utterances, blue first, red last."""
  share = number / max(1, count - 1)
  return _color(_FIRST_HUE + share * (_LAST_HUE - _FIRST_HUE))


def _color(hue: float) -> Color:
  r, g, b = colorsys.hsv_to_rgb(hue, 0.85, 0.95)
  return round(r * 255), round(g * 255), round(b * 255)


def draw(record: records.Record, width: int) -> Image.Image:
  """Draws a record.

  Args:
    record: as read.
    width: of the drawing; its height follows.

  Returns:
    The picture with masks in their colours, boxes, and traces as lines with a
    dot at the centre of every utterance. Several traces are drawn over each
    other. What lies outside the picture is cut.
  """
  with Image.open(io.BytesIO(record.encoded)) as picture:
    pixels = np.asarray(picture.convert('RGB'))
  pixels = pixels.astype(np.float32)
  for number, place in enumerate(record.places):
    if place.mask_png:
      with Image.open(io.BytesIO(place.mask_png)) as picture:
        inside = np.asarray(picture) > 0
      color = np.array(place_color(number), np.float32)
      pixels[inside] += _MASK_OPACITY * (color - pixels[inside])
  height = max(1, round(width * record.height / record.width))
  drawing = Image.fromarray(np.rint(pixels).astype(np.uint8)).resize(
      (width, height), Image.Resampling.LANCZOS
  )
  canvas = ImageDraw.Draw(drawing)
  size = np.array([width, height])
  for number, place in enumerate(record.places):
    if place.box is not None:
      corners = (place.box.reshape(2, 2) * size).reshape(-1).tolist()
      canvas.rectangle(
          corners, outline=place_color(number), width=_LINE_WIDTH
      )
    if place.trace is not None:
      _draw_trace(canvas, place.trace, size)
  return drawing


def _draw_trace(
    canvas: ImageDraw.ImageDraw, trace: records.Trace, size: np.ndarray
) -> None:
  count = len(trace.utterances)
  for number in range(count):
    color = utterance_color(number, count)
    points = (trace.points[number] * size).reshape(-1).tolist()
    canvas.line(points, fill=color, width=_LINE_WIDTH)
  for number in range(count):
    x, y = (trace.centers[number] * size).tolist()
    canvas.ellipse(
        (x - _DOT_RADIUS, y - _DOT_RADIUS, x + _DOT_RADIUS, y + _DOT_RADIUS),
        fill=utterance_color(number, count),
        outline=(255, 255, 255),
    )
