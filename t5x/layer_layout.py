"""Parameters of a stack of layers: an array per layer, or one for all layers.

Unrolled, a stack is a child a layer; scanned, its arrays hold all layers along
one more axis, so that the compiler sees one layer (`flax.linen.scan`, RefA):

    encoder/layers_0/mlp/wo/kernel  [mlp, embed]
    encoder/layers_1/mlp/wo/kernel  [mlp, embed]
    encoder/encoder/mlp/wo/kernel   [mlp, layers, embed]

Where layers repeat with a period of several, the scanned stack has a child for
each of its members, which take turns: of six blocks with period 2, `blocks/
blocks.0` holds 0, 2 and 4, and `blocks/blocks.1` holds 1, 3 and 5.

A `Layout` converts trees between both forms, bit for bit: parameters, the
optimizer states that mirror them, and state dicts that hold both. Leaves may be
arrays, `jax.ShapeDtypeStruct`s or arrays of a checkpoint that are not yet read.

RefA: google-research/t5x `examples/scalable_t5/network.py` (names, and that the
layers are the second axis).
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from t5x import checkpoint_importer

_LazyArray = checkpoint_importer.LazyArray
_Path = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class StackNames:
  """How the two forms name one kind of stack.

  Attributes:
    layer: name of a layer, `{}` for its number.
    scanned: name of the stack in the scanned form, in place of its layers.
    parent: name of what holds either; None for any.
  """

  layer: str
  scanned: str
  parent: str | None = None

  def number(self, name: str) -> int | None:
    """Returns the layer's number, None for another name."""
    before, after = map(re.escape, self.layer.split('{}'))
    found = re.fullmatch(f'{before}(0|[1-9][0-9]*){after}', name)
    return int(found[1]) if found else None

  def members(self, stack: Mapping[str, Any]) -> list[Any]:
    """Returns what takes turns in a scanned stack: itself, or its children."""
    numbers = {self.number(name): name for name in stack}
    if None in numbers:
      return [stack]
    return [stack[numbers[i]] for i in sorted(numbers)]


# Those of `t5x.examples.t5`.
T5_STACKS = (
    StackNames('layers_{}', 'encoder', parent='encoder'),
    StackNames('layers_{}', 'decoder', parent='decoder'),
)


@dataclasses.dataclass(frozen=True)
class Layout:
  """Where scanned stacks are and along which axis.

  Attributes:
    stacks: the kinds of stacks that a network may hold.
    axis: where the axis of layers is put, 1 for the second; an array with fewer
      axes has it last.
  """

  stacks: Sequence[StackNames] = T5_STACKS
  axis: int = 1

  def periods(self, tree: Any) -> dict[str, int]:
    """Finds the scanned stacks of a tree.

    Args:
      tree: such as the parameters of a model, or their shapes.

    Returns:
      How many members take turns, by name; 0 if the layers are all alike and
      the stack has no members: `{'encoder/encoder': 0, 'tower/blocks': 8}`.
    """
    found = {}

    def look(node, path):
      for names in self._kinds(path):
        if isinstance(node.get(names.scanned), Mapping):
          name = '/'.join((*path, names.scanned))
          stack = node[names.scanned]
          members = names.members(stack)
          found[name] = 0 if members[0] is stack else len(members)
      return node

    _walk(tree, look)
    return found

  def unroll(self, tree: Any) -> Any:
    """Gives every layer of all scanned stacks its own arrays.

    Args:
      tree: nested mappings, tuples or lists; other parts stay as they are.

    Returns:
      The tree in the unrolled form.

    Raises:
      ValueError: if arrays of a stack differ in their number of layers.
    """
    return self._unroll(tree, _split)

  def scan(self, tree: Any, periods: Mapping[str, int]) -> Any:
    """Puts the layers of some stacks into one array each; unrolls the others.

    Args:
      tree: in either form.
      periods: names of stacks in the scanned form and their number of members,
        as from `periods`. A name counts wherever a path ends with it, so those
        of the parameters serve for the optimizer's state as well.

    Returns:
      The tree with these stacks in the scanned form.

    Raises:
      ValueError: if a layer is missing, or layers of a stack do not match.
    """

    def convert(node, path):
      for names in self._kinds(path):
        name = '/'.join((*path, names.scanned))
        layers = {names.number(str(key)): key for key in node}
        layers.pop(None, None)
        period = next(
            (p for n, p in periods.items() if f'/{name}'.endswith(f'/{n}')),
            None,
        )
        if period is not None and layers:
          rest = {k: v for k, v in node.items() if k not in layers.values()}
          layers = {i: node[key] for i, key in sorted(layers.items())}
          stack = self._stacked(names, layers, path, period)
          node = type(node)({**rest, names.scanned: stack})
      return node

    return _walk(self.unroll(tree), convert)

  def match(self, tree: Any, target: Any) -> Any:
    """Brings a tree into the form of another, stack by stack.

    Args:
      tree: in either form.
      target: a tree that has the wanted form; only its names matter.

    Returns:
      The tree in the form of `target`.
    """
    return self.scan(tree, self.periods(target))

  def layer_names(self, tree: Any) -> dict[str, tuple[str, ...]]:
    """Names every parameter as the unrolled form does.

    Args:
      tree: parameters or their shapes, in either form.

    Returns:
      Name of each leaf to its names in the unrolled form: one, or one a layer
      for a leaf that holds several, in their order.
    """
    marked = jax.tree.map_with_path(
        lambda path, leaf: _Mark(_name(path), tuple(leaf.shape)), tree
    )
    found: dict[str, list[str]] = {}
    unrolled = self._unroll(
        marked, lambda mark, axis: [mark] * mark.shape[axis]
    )
    for path, mark in jax.tree.leaves_with_path(unrolled):
      found.setdefault(mark.name, []).append(_name(path))
    return {name: tuple(sorted(n, key=_natural)) for name, n in found.items()}

  def _kinds(self, path: _Path) -> list[StackNames]:
    """The stacks that may lie at a path."""
    parent = path[-1] if path else None
    return [s for s in self.stacks if s.parent in (None, parent)]

  def _axis(self, rank: int) -> int:
    """The axis of layers in an array that has `rank` axes without it."""
    return min(self.axis, rank)

  def _unroll(
      self, tree: Any, split: Callable[[Any, int], Sequence[Any]]
  ) -> Any:
    """Unrolls; `split` cuts a leaf along an axis."""

    def convert(node, path):
      for names in self._kinds(path):
        stack = node.get(names.scanned)
        if not isinstance(stack, Mapping) or not jax.tree.leaves(stack):
          continue
        size = self._size(stack, (*path, names.scanned))
        members = names.members(stack)
        layers = {}
        for j, member in enumerate(members):
          leaves, structure = jax.tree.flatten(member)
          cut = [split(x, self._axis(len(x.shape) - 1)) for x in leaves]
          for i in range(size):
            layers[i * len(members) + j] = structure.unflatten(
                [layer[i] for layer in cut]
            )
        rest = {k: v for k, v in node.items() if k != names.scanned}
        layers = {names.layer.format(i): layers[i] for i in sorted(layers)}
        node = type(node)({**rest, **layers})
      return node

    return _walk(tree, convert)

  def _size(self, stack: Any, path: _Path) -> int:
    """The length of the axis of layers, which all arrays must share."""
    sizes = {}
    for key, leaf in jax.tree.leaves_with_path(stack):
      name = '/'.join((*path, _name(key)))
      if not leaf.shape:
        raise ValueError(
            f'{name} is a scalar, but lies in a scanned stack, whose arrays'
            ' have an axis of layers.'
        )
      sizes[name] = leaf.shape[self._axis(len(leaf.shape) - 1)]
    first = next(iter(sizes))
    for name, size in sizes.items():
      if size != sizes[first]:
        raise ValueError(
            f'{name} holds {size} layers, but {first} of the same stack holds'
            f' {sizes[first]}.'
        )
    return sizes[first]

  def _stacked(
      self,
      names: StackNames,
      layers: Mapping[int, Any],
      path: _Path,
      period: int,
  ) -> dict[str, Any]:
    """Returns the scanned form of layers by number."""

    def full(number, *rest):
      return '/'.join((*path, names.layer.format(number), *rest))

    count, step = max(layers) + 1, max(period, 1)
    missing = [i for i in range(count) if i not in layers]
    if missing:
      raise ValueError(
          f'{full(missing[0])} is missing below {full(count - 1)}.'
      )
    if count % step:
      raise ValueError(
          f'{full(0)} to {full(count - 1)} do not divide into groups of'
          f' {period}, which the scanned form is made of.'
      )
    members = {}
    for first in range(step):
      turns = range(first, count, step)
      like = _by_name(layers[first])
      columns = {name: [] for name in like}
      for i in turns:
        leaves = _by_name(layers[i])
        for name in sorted(like.keys() ^ leaves.keys()):
          has, lacks = (i, first) if name in leaves else (first, i)
          raise ValueError(f'{full(has, name)} has no like in {full(lacks)}.')
        for name, leaf in leaves.items():
          if (leaf.shape, leaf.dtype) != (like[name].shape, like[name].dtype):
            raise ValueError(
                f'{full(i, name)} is {leaf.dtype}{list(leaf.shape)}, but'
                f' {full(first, name)} is {like[name].dtype}'
                f'{list(like[name].shape)}; one array cannot hold both.'
            )
          columns[name].append(leaf)
      members[names.layer.format(first)] = jax.tree.unflatten(
          jax.tree.structure(layers[first]),
          [_stack(c, self._axis(len(c[0].shape))) for c in columns.values()],
      )
    return members if period else members[names.layer.format(0)]


@dataclasses.dataclass(frozen=True)
class _Mark:
  """Stands for an array and each of its layers."""

  name: str
  shape: tuple[int, ...]


class _ReadOnce:
  """An array of a checkpoint that is read once for all of its layers."""

  def __init__(self, array: _LazyArray, axis: int):
    self._array, self._axis = array, axis
    self._value: np.ndarray | None = None
    self._unread = set(range(array.shape[axis]))

  def get(self, index: int) -> np.ndarray:
    """Returns one layer; the last one to be asked for frees the array."""
    if self._value is None:
      self._value = self._array.get()
    layer = np.array(np.take(self._value, index, self._axis))
    self._unread.discard(index)
    if not self._unread:
      self._value = None
    return layer


def _split(array: Any, axis: int) -> list[Any]:
  """Cuts an array of any kind into its layers."""
  shape = (*array.shape[:axis], *array.shape[axis + 1 :])
  indexes = range(array.shape[axis])
  if isinstance(array, _LazyArray):
    source = _ReadOnce(array, axis)
    return [
        _LazyArray(
            shape,
            array.dtype,
            functools.partial(source.get, i),
            array.sources,
        )
        for i in indexes
    ]
  if isinstance(array, jax.ShapeDtypeStruct):
    return [jax.ShapeDtypeStruct(shape, array.dtype) for _ in indexes]
  before = (slice(None),) * axis
  return [array[(*before, i)] for i in indexes]


def _stack(layers: Sequence[Any], axis: int) -> Any:
  """Joins layers of any kind along a new axis."""
  like = layers[0]
  shape = (*like.shape[:axis], len(layers), *like.shape[axis:])
  if any(isinstance(layer, _LazyArray) for layer in layers):
    return _LazyArray(
        shape,
        like.dtype,
        functools.partial(_read_and_stack, layers, axis),
        [s for layer in layers for s in getattr(layer, 'sources', ())],
    )
  if any(isinstance(layer, jax.ShapeDtypeStruct) for layer in layers):
    return jax.ShapeDtypeStruct(shape, like.dtype)
  if all(isinstance(layer, np.ndarray) for layer in layers):
    return np.stack(layers, axis)
  return jnp.stack(layers, axis)


def _read_and_stack(layers: Sequence[Any], axis: int) -> np.ndarray:
  # Here because Orbax takes a second to import.
  from t5x import stored_state

  return np.stack(stored_state.get_all(list(layers)), axis)


def _by_name(tree: Any) -> dict[str, Any]:
  return {_name(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def _name(path: Any) -> str:
  return jax.tree_util.keystr(path, simple=True, separator='/')


def _natural(name: str) -> list[tuple[int, str]]:
  """Sorts numbers in names by value: `layers_2` comes before `layers_10`."""
  return [
      (int(x) if x.isdigit() else -1, x) for x in re.split('([0-9]+)', name)
  ]


def _walk(
    tree: Any, convert: Callable[[Mapping[str, Any], _Path], Any], path=()
) -> Any:
  """Converts all mappings of a tree, the inner ones first."""
  if isinstance(tree, Mapping):
    node = type(tree)(
        {k: _walk(v, convert, (*path, str(k))) for k, v in tree.items()}
    )
    return convert(node, path)
  if isinstance(tree, (tuple, list)):
    children = [_walk(v, convert, (*path, str(i))) for i, v in enumerate(tree)]
    if hasattr(tree, '_fields'):
      return type(tree)(*children)
    return type(tree)(children)
  return tree
