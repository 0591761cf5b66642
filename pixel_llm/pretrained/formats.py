"""The formats of weights that are known by their names, and where each goes.

A format is told by the names in a file, and gives them the names of our
network. A new one is an entry in `FORMATS`.
"""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

from pixel_llm.pretrained import bert_hf
from pixel_llm.pretrained import eva02
from pixel_llm.pretrained import name_rules
from pixel_llm.pretrained import peft_adapters
from pixel_llm.pretrained import sam
from pixel_llm.pretrained import sources
from pixel_llm.pretrained import t5_hf

# What the network of a released PixelLLM has for certain.
_PIXEL_LLM_PARTS = ('git_backbone/', 'textual/', 'sam_backbone/')

_Names = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Format:
  """One format of weights.

  Attributes:
    title: what it is, for the report.
    matches: tells it by the names in a source.
    to_ours: gives the parameters our names.
    place: the part of the network that it fills; the names are below it.
  """

  title: str
  matches: Callable[[_Names], bool]
  to_ours: Callable[[_Names], name_rules.Result]
  place: str


def _same_names(arrays: _Names) -> name_rules.Result:
  return name_rules.Result(
      [
          name_rules.Renamed(name, name, name_rules.transposed(array, None))
          for name, array in arrays.items()
      ]
  )


def _is_pixel_llm(names: _Names) -> bool:
  return any(name.startswith(_PIXEL_LLM_PARTS) for name in names)


def _is_t5x(names: _Names) -> bool:
  return 'token_embedder/embedding' in names and any(
      name.startswith(('encoder/', 'decoder/')) for name in names
  )


def _adapters_to_ours(arrays: _Names) -> name_rules.Result:
  return peft_adapters.TABLE.to_ours(arrays)


FORMATS: Mapping[str, Format] = {
    'pixel_llm': Format(
        'PixelLLM (this project or the original)',
        _is_pixel_llm,
        _same_names,
        '',
    ),
    't5x': Format('T5 of T5X', _is_t5x, _same_names, 'textual/t5_module'),
    't5_hf': Format(
        'T5 of Hugging Face', t5_hf.is_t5, t5_hf.to_ours, 'textual/t5_module'
    ),
    'bert_hf': Format(
        'BERT or GIT of Hugging Face',
        bert_hf.is_bert,
        bert_hf.to_ours,
        'textual',
    ),
    'sam': Format('SAM of Meta', sam.is_meta, sam.META_TABLE.to_ours, ''),
    'sam_hf': Format('SAM of Hugging Face', sam.is_hf, sam.hf_to_ours, ''),
    'eva02': Format(
        'EVA02 of timm, OpenCLIP or its authors',
        eva02.is_eva02,
        eva02.to_ours,
        eva02.PLACE,
    ),
    'peft': Format(
        'low-rank adapters of peft',
        lambda names: any('.lora_A.' in name for name in names),
        _adapters_to_ours,
        'textual/t5_module',
    ),
}


def detect(source: sources.Source) -> str:
  """Returns the name of the format of a source.

  Raises:
    ValueError: if it is none of the known ones; it shows some names.
  """
  for name, one in FORMATS.items():
    if one.matches(source.arrays):
      return name
  shown = sorted(source.arrays)[:6]
  raise ValueError(
      f'{source.path} ({source.container}) holds {len(source.arrays)} arrays of'
      f' no known format, such as {shown}. Known are:'
      f' {", ".join(f"{k} ({v.title})" for k, v in FORMATS.items())}.'
  )


def convert(
    source: sources.Source, name: str, place: str | None = None
) -> name_rules.Result:
  """Gives the parameters of a source their full names in our network.

  Args:
    source: the weights.
    name: their format.
    place: the part of the network they go to; None for the usual one.
  """
  one = FORMATS[name]
  result = one.to_ours(source.arrays)
  prefix = one.place if place is None else place.strip('/')
  if prefix:
    result = result.with_names(lambda new: f'{prefix}/{new}')
  return result
