"""A card a sample: the picture with what was said and what is true."""

from collections.abc import Mapping, Sequence
import html
from typing import Any

from pixel_llm.evaluation.report import pictures
from pixel_llm.evaluation.report import samples as samples_lib

LEGEND = (
    '<p class="legend"><span><span class="swatch pred"></span>predicted</span>'
    '<span><span class="swatch true"></span>true</span></p>'
)


def _badge(text: str, kind: str = '') -> str:
  return f'<span class="badge {kind}">{html.escape(text)}</span>'


def _badges(sample: samples_lib.Sample) -> str:
  """Scores of a sample in words, not by colour alone."""
  badges = []
  if sample.box_iou is not None:
    if sample.row.get('bbox') is None:
      badges.append(_badge('✗ no box', 'bad'))
    else:
      right = sample.is_right
      badges.append(
          _badge(
              f'{"✓" if right else "✗"} box IoU {sample.box_iou:.2f}',
              'good' if right else 'bad',
          )
      )
  if sample.mask_iou is not None:
    badges.append(_badge(f'mask IoU {sample.mask_iou:.2f}'))
  if sample.trace_l1 is not None:
    badges.append(_badge(f'mean point distance {sample.trace_l1:.3f}'))
  if sample.row.get('score') is not None:
    badges.append(_badge(f'text log-probability {sample.row["score"]:.2f}'))
  return f'<div class="badges">{"".join(badges)}</div>'


def box_card(sample: samples_lib.Sample, store: pictures.PictureStore) -> str:
  """A referring expression with both boxes and masks.

  Args:
    sample: with a true box.
    store: gives the picture.

  Returns:
    An `article` element.
  """
  row, truth = sample.row, sample.row['truth']
  width, height = row['width'], row['height']
  layers = [store.use(row['file_name'], width, height)]
  if truth.get('segmentation'):
    layers.append(
        pictures.mask_layer(
            truth['segmentation'], width, height, pictures.TRUE_RGB, 0
        )
    )
  if row.get('segmentation'):
    layers.append(
        pictures.mask_layer(
            row['segmentation'], width, height, pictures.PREDICTED_RGB, 90
        )
    )
  layers.append(pictures.box_layer(truth['bbox'], 'true-box', 'true box'))
  what = 'no predicted box'
  if row.get('bbox') is not None:
    layers.append(pictures.box_layer(row['bbox'], 'pred-box', 'predicted box'))
    what = f'predicted box with IoU {sample.box_iou:.2f}'
  description = (
      f'Picture {row["file_name"]} with true box and {what} for'
      f' “{truth["text"]}”'
  )
  said = f'<p class="said">“{html.escape(truth["text"])}”</p>'
  written = row.get('caption')
  if written is not None and written.strip() != truth['text'].strip():
    said += f'<p class="dim">the model wrote: “{html.escape(written)}”</p>'
  return (
      '<article class="card">'
      f'{pictures.drawing(width, height, description, "".join(layers))}'
      f'{said}{_badges(sample)}{_origin(row)}</article>'
  )


def trace_card(sample: samples_lib.Sample, store: pictures.PictureStore) -> str:
  """A caption with its trace, beside the true caption with the true trace.

  Args:
    sample: with a predicted trace.
    store: gives the picture.

  Returns:
    An `article` element.
  """
  row, truth = sample.row, sample.row['truth']
  halves = [
      _traced(row, 'predicted', row['trace'], row['caption'], store),
      _traced(row, 'true', truth['trace'], truth['text'], store),
  ]
  return (
      f'<article class="card"><div class="pair">{"".join(halves)}</div>'
      f'{_badges(sample)}{_origin(row)}</article>'
  )


def text_card(sample: samples_lib.Sample, store: pictures.PictureStore) -> str:
  """A picture with predicted and true text, where nothing is pointed at."""
  row, truth = sample.row, sample.row['truth']
  width, height = row['width'], row['height']
  picture = store.use(row['file_name'], width, height)
  text = html.escape(row.get('caption', '(not decoded: no vocabulary)'))
  return (
      '<article class="card">'
      f'{pictures.drawing(width, height, row["file_name"], picture)}'
      f'<p class="said">{text}</p>'
      f'<p class="dim">true: {html.escape(truth["text"])}</p>'
      f'{_badges(sample)}{_origin(row)}</article>'
  )


def detection_card(
    sample: samples_lib.Sample, store: pictures.PictureStore
) -> str:
  """An object that the model found, without a truth to compare with."""
  row = sample.row
  width, height = row['width'], row['height']
  layers = [store.use(row['file_name'], width, height)]
  if row['bbox'] is not None:
    layers.append(pictures.box_layer(row['bbox'], 'pred-box', 'predicted box'))
  text = html.escape(row.get('caption', '(not decoded: no vocabulary)'))
  description = f'Picture {row["file_name"]} with {row["prompt_id"]}'
  return (
      '<article class="card">'
      f'{pictures.drawing(width, height, description, "".join(layers))}'
      f'<p class="said">“{text}”</p>'
      f'<p class="dim">score {row["detection_score"] or 0:.2f}</p>'
      f'{_origin(row)}</article>'
  )


def card(sample: samples_lib.Sample, store: pictures.PictureStore) -> str:
  """The card that fits what the row holds."""
  if 'truth' not in sample.row:
    return detection_card(sample, store)
  if sample.box_iou is not None:
    return box_card(sample, store)
  if 'trace' in sample.row:
    return trace_card(sample, store)
  return text_card(sample, store)


def _traced(
    row: Mapping[str, Any],
    whose: str,
    words: Sequence[Mapping[str, Any]],
    caption: str,
    store: pictures.PictureStore,
) -> str:
  """One trace over the picture and its caption in the same colours."""
  width, height = row['width'], row['height']
  layers = store.use(row['file_name'], width, height) + pictures.trace_layer(
      words, max(width, height) / 90
  )
  description = f'Picture {row["file_name"]} with the {whose} trace: {caption}'
  chips = ' '.join(
      _chip(word, index, len(words)) for index, word in enumerate(words)
  )
  return (
      f'<div><h4>{whose}</h4>'
      f'{pictures.drawing(width, height, description, layers)}'
      f'<p class="caption">{chips or "(no words)"}</p></div>'
  )


def _chip(word: Mapping[str, Any], index: int, num_words: int) -> str:
  """A word on its colour, in the black or white that reads better on it."""
  text = html.escape(word['word'])
  if word['bbox'] is None:
    return f'<span class="chip none" title="no point">{text}</span>'
  color = pictures.word_color(index, num_words)
  red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
  # Perceived lightness, 0 to 255.
  dark = ' dark' if 0.3 * red + 0.59 * green + 0.11 * blue < 118 else ''
  return f'<span class="chip{dark}" style="background:{color}">{text}</span>'


def _origin(row: Mapping[str, Any]) -> str:
  """Where the sample comes from, small."""
  return (
      f'<p class="dim">{html.escape(row["file_name"])}, prompt'
      f' {html.escape(str(row["prompt_id"]))}</p>'
  )
