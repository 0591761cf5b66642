"""`tf.train.Example` and `SequenceExample` without TensorFlow (RefA).

The messages are described here and built in a pool of their own, so that they
cannot clash with TensorFlow's in a process that has both. On the wire they
are the same.

RefA: tensorflow `core/example/example.proto` and `feature.proto`.
"""

from collections.abc import Mapping, Sequence

from google.protobuf import descriptor_pb2
from google.protobuf import descriptor_pool
from google.protobuf import message
from google.protobuf import message_factory
import numpy as np

_PACKAGE = 'pixel_llm.build'
_Field = descriptor_pb2.FieldDescriptorProto
DecodeError = message.DecodeError


def _add_field(
    owner: descriptor_pb2.DescriptorProto,
    name: str,
    number: int,
    kind: int,
    type_name: str | None = None,
    repeated: bool = False,
) -> descriptor_pb2.FieldDescriptorProto:
  return owner.field.add(
      name=name,
      number=number,
      type=kind,
      type_name=type_name and f'.{_PACKAGE}.{type_name}',
      label=_Field.LABEL_REPEATED if repeated else _Field.LABEL_OPTIONAL,
  )


def _describe() -> descriptor_pb2.FileDescriptorProto:
  """Describes the messages of RefA."""
  file = descriptor_pb2.FileDescriptorProto(
      name='pixel_llm/build/example.proto', package=_PACKAGE, syntax='proto3'
  )
  lists = (
      ('BytesList', 'bytes_list', _Field.TYPE_BYTES),
      ('FloatList', 'float_list', _Field.TYPE_FLOAT),
      ('Int64List', 'int64_list', _Field.TYPE_INT64),
  )
  # proto3 packs repeated numbers, as RefA asks.
  for list_name, _, kind in lists:
    owner = file.message_type.add(name=list_name)
    _add_field(owner, 'value', 1, kind, repeated=True)
  feature = file.message_type.add(name='Feature')
  feature.oneof_decl.add(name='kind')
  for number, (list_name, field_name, _) in enumerate(lists, 1):
    field = _add_field(
        feature, field_name, number, _Field.TYPE_MESSAGE, list_name
    )
    field.oneof_index = 0
  _add_map(file, 'Features', 'feature', 'Feature')
  feature_list = file.message_type.add(name='FeatureList')
  _add_field(
      feature_list, 'feature', 1, _Field.TYPE_MESSAGE, 'Feature', repeated=True
  )
  _add_map(file, 'FeatureLists', 'feature_list', 'FeatureList')
  example = file.message_type.add(name='Example')
  _add_field(example, 'features', 1, _Field.TYPE_MESSAGE, 'Features')
  sequence = file.message_type.add(name='SequenceExample')
  _add_field(sequence, 'context', 1, _Field.TYPE_MESSAGE, 'Features')
  _add_field(sequence, 'feature_lists', 2, _Field.TYPE_MESSAGE, 'FeatureLists')
  return file


def _add_map(
    file: descriptor_pb2.FileDescriptorProto,
    name: str,
    field_name: str,
    value_type: str,
) -> None:
  """Adds a message whose only field is a map from text to messages."""
  owner = file.message_type.add(name=name)
  # The entry is named after the field, as protobuf asks.
  entry_name = f'{field_name.title().replace("_", "")}Entry'
  entry = owner.nested_type.add(name=entry_name)
  entry.options.map_entry = True
  _add_field(entry, 'key', 1, _Field.TYPE_STRING)
  _add_field(entry, 'value', 2, _Field.TYPE_MESSAGE, value_type)
  kind = f'{name}.{entry_name}'
  _add_field(owner, field_name, 1, _Field.TYPE_MESSAGE, kind, repeated=True)


_POOL = descriptor_pool.DescriptorPool()
_POOL.Add(_describe())
Example, SequenceExample = (
    message_factory.GetMessageClass(
        _POOL.FindMessageTypeByName(f'{_PACKAGE}.{name}')
    )
    for name in ('Example', 'SequenceExample')
)

Value = (
    bytes
    | str
    | Sequence[bytes]
    | Sequence[str]
    | Sequence[int]
    | np.ndarray
    | int
    | float
)


def serialize(values: Mapping[str, Value]) -> bytes:
  """Serializes features, the same bytes for the same values.

  Args:
    values: feature name to one value or a list: text and bytes, integers, or
      floats. Arrays are stored row by row. An empty list has no kind.

  Returns:
    The bytes of an Example.

  Raises:
    TypeError: if a list holds something else.
  """
  example = Example()
  for name, value in values.items():
    feature = example.features.feature[name]
    if isinstance(value, (bytes, str)):
      value = [value]
    if len(np.shape(value)) == 1 and not len(value):
      # Setting the field makes an empty Feature, which parsers take for none.
      feature.SetInParent()
      continue
    if isinstance(value, Sequence) and isinstance(value[0], (bytes, str)):
      feature.bytes_list.value.extend(
          item.encode('utf-8') if isinstance(item, str) else item
          for item in value
      )
      continue
    array = np.asarray(value)
    if array.dtype.kind in 'iu':
      feature.int64_list.value.extend(array.reshape(-1).tolist())
    elif array.dtype.kind == 'f':
      feature.float_list.value.extend(array.reshape(-1).tolist())
    else:
      raise TypeError(
          f'Feature {name!r} holds {array.dtype}; expected text, bytes,'
          ' integers or floats.'
      )
  return example.SerializeToString(deterministic=True)
