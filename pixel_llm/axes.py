"""Logical axis names of parameters and activations.

A partitioner maps these names to mesh axes, so a network never names the mesh.
T5X's words come first: its standard rules know them. Ours follow; a run adds
`additional_rules()` to the standard ones.

All names of one array differ, because a rule may use a mesh axis once.
"""

# T5X's words.

# Images of a batch.
BATCH = 'batch'
# Positions of a sequence: text tokens, visual tokens.
LENGTH = 'length'
# Width of the residual stream.
EMBED = 'embed'
# Heads times width of a head, as attention kernels store them.
JOINED_KV = 'joined_kv'
# Attention heads.
HEADS = 'heads'
# Width of one head.
KV = 'kv'
# Hidden width of an MLP.
MLP = 'mlp'
# Entries of the vocabulary.
VOCAB = 'vocab'
# Layers of a scanned stack.
LAYERS = 'layers'
# Rows of a relative position table.
RELPOS_BUCKETS = 'relpos_buckets'
# Rows of an absolute position table.
ABSPOS_BUCKETS = 'abspos_buckets'
# Arrays of one kind stacked in one parameter.
STACK = 'stack'

# Ours.

# Prompts of an image: captions, boxes or expressions.
PROMPTS = 'prompts'
# Height of a feature grid, or of an image.
GRID_HEIGHT = 'grid_height'
# Width of a feature grid, or of an image.
GRID_WIDTH = 'grid_width'
# Height of a convolution kernel.
KERNEL_HEIGHT = 'kernel_height'
# Width of a convolution kernel.
KERNEL_WIDTH = 'kernel_width'
# Width that enters from another stage: colours, another tower's features.
CHANNELS = 'channels'
# Width that leaves for another stage: coordinates, masks, projected features.
OUTPUTS = 'outputs'
# Learned tokens or type embeddings, one a row.
QUERIES = 'queries'
# The two coordinates of a point.
COORDINATES = 'coordinates'
# Rank of a low-rank adapter.
LORA_RANK = 'lora_rank'
# Axis of size one that a checkpoint stores.
UNIT = 'unit'

_REPLICATED = (
    PROMPTS,
    GRID_HEIGHT,
    GRID_WIDTH,
    KERNEL_HEIGHT,
    KERNEL_WIDTH,
    CHANNELS,
    OUTPUTS,
    QUERIES,
    COORDINATES,
    LORA_RANK,
    UNIT,
)


def additional_rules() -> tuple[tuple[str, str | None], ...]:
  """Returns rules for our names, to add to T5X's standard ones.

  All of them stay whole on every device: they are short, or differ in size
  from run to run.

  Returns:
    Pairs of logical axis and mesh axis, as `standard_logical_axis_rules` takes
    in `additional_rules`.
  """
  return tuple((name, None) for name in _REPLICATED)
