"""The recipes say what was published, and build the model that it was.

Abstract only: no array is made. The numbers are those of the published recipes
of "Pixel Aligned Language Models" (arXiv 2312.09237).
"""

import difflib
import re

import pytest
import recipe_files
import seqio

from pixel_llm import beam_search
from pixel_llm import generation
from pixel_llm.modules import bert_text_head
from tasks import vocabularies

JOINT_REF = 'trace_ref_densecap_llava'
JOINT_REFSEG = 'trace_refseg_densecap_llava'
HEADS = ('t5', 'bert')

# N, T, C, batch, steps, warm-up, rate, weight decay.
NUMBERS = {
    'trace': (1, 128, 8, 256, 10000, 250, 5e-5, 0.0),
    'ref': (16, 40, 40, 64, 120000, 1000, 5e-5, 0.0),
    'refseg': (16, 40, 40, 64, 60000, 500, 5e-5, 0.0),
    'densecap': (100, 40, 8, 64, 40000, 1000, 1e-4, 0.05),
    JOINT_REF: (16, 128, 32, 128, 240000, 2000, 1e-4, 0.05),
    JOINT_REFSEG: (16, 128, 32, 128, 30000, 250, 1e-4, 0.0),
}
DECODERS = {
    'trace': beam_search.BeamSearch(num_beams=4, per_node_beam_size=2),
    'ref': beam_search.BeamSearch(num_beams=3, per_node_beam_size=1),
    'refseg': None,
    'densecap': generation.Greedy(),
    JOINT_REF: beam_search.BeamSearch(num_beams=4, per_node_beam_size=2),
    JOINT_REFSEG: beam_search.BeamSearch(num_beams=4, per_node_beam_size=2),
}
# What trains of each model: its part and the number of its values.
TOWER, ADAPTER = 303_268_800, 44_030_720
LORA, BERT = 18_874_368, 91_016_250
LANGUAGE = {
    't5': {'textual': LORA, 'visual_project_layers': 2_103_296},
    'bert': {'textual': BERT},
}
POINTS = {'t5': 1_582_600, 'bert': 924_680}
MASKS = {'t5': 4_349_568, 'bert': 3_755_136}
BOXES = 21_948_560
# Every recipe that decays layer by layer.
DECAYING = ('densecap', JOINT_REF)

FULL_SIZE = [f'pixel_llm_{head}_{name}' for head in HEADS for name in NUMBERS]
# One of each head in every run of the tests; all of them take half a minute.
QUICK = {f'pixel_llm_t5_{JOINT_REF}', 'pixel_llm_bert_refseg'}
BUILT = [
    name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)
    for name in FULL_SIZE
]


def split(name):
  """`pixel_llm_t5_trace` is ('t5', 'trace')."""
  head, _, recipe = name.removeprefix('pixel_llm_').partition('_')
  return head, recipe


def expected_to_train(head, recipe):
  """What PixelLLM's recipes train, by part."""
  if recipe == JOINT_REFSEG:
    return {'mask_adapter': MASKS[head]}
  points = {'point_predictor': POINTS[head]}
  if recipe == 'refseg':
    return {'mask_adapter': MASKS[head], **points}
  parts = {'git_backbone': TOWER, 'prompt_adapter': ADAPTER, **LANGUAGE[head]}
  if recipe in DECAYING:
    parts['box_decoder'] = BOXES
  return parts if recipe == 'densecap' else {**parts, **points}


def test_there_are_twelve_recipes():
  found = {name for name in recipe_files.RUNS if 'tiny' not in name}
  assert found == set(FULL_SIZE)


@pytest.mark.parametrize('name', recipe_files.RUNS)
def test_a_run_equals_its_golden_text(name):
  recipe_files.parse(name)
  got = recipe_files.text().splitlines()
  path = recipe_files.GOLDEN / f'{name}.txt'
  want = path.read_text().splitlines() if path.exists() else []
  changes = difflib.unified_diff(want, got, 'golden', name, lineterm='', n=0)
  assert not list(changes), 'If this is meant: see tests/gin/recipe_files.py.'


@pytest.mark.parametrize('name', recipe_files.RUNS)
def test_every_macro_is_read_and_every_one_read_is_set(name):
  recipe_files.parse(name)
  is_set, is_read = recipe_files.macros()
  assert is_set == is_read


@pytest.mark.parametrize('script', ['eval', 'infer'])
def test_a_run_is_read_along_by_the_scripts_that_follow_it(script):
  recipe_files.parse(
      'pixel_llm_bert_trace',
      f'gin/runs/{script}.gin',
      bindings=["MODEL_DIR = 'runs/mine'"],
      module=f't5x.{script}',
  )
  # The rest of what it says is run once in test_run_files.py.
  assert recipe_files.macro('CHECKPOINT_PATH') == 'runs/mine'
  text = recipe_files.text()
  assert f'{script}/utils.RestoreCheckpointConfig.fallback_to_scratch' in text
  assert "'ln_coco_trace_bert'" in text


@pytest.mark.parametrize('name', FULL_SIZE)
def test_a_recipe_has_the_published_numbers(name):
  _, recipe = split(name)
  recipe_files.parse(name)
  names = 'NUM_PROMPTS TEXT_LENGTH CONTEXT_LENGTH BATCH_SIZE TRAIN_STEPS'
  names += ' WARMUP_STEPS LEARNING_RATE WEIGHT_DECAY'
  got = tuple(recipe_files.macro(name) for name in names.split())
  assert got == NUMBERS[recipe]
  assert recipe_files.macro('DECODER') == DECODERS[recipe]
  assert recipe_files.macro('IMAGE_SIZE') == 384
  assert recipe_files.macro('DROPOUT_RATE') == 0.1


@pytest.mark.parametrize('name', FULL_SIZE)
def test_a_recipe_opens_like_a_lab_note(name):
  text = (recipe_files.ROOT / f'gin/{name}.gin').read_text()
  note = text.partition('\ninclude')[0]
  assert 'Published: ' in note and 'Starts from ' in note
  assert 'Next:' in note or ' follow' in note
  # Other recipes that it speaks of exist, and have the same language model.
  for other in re.findall(r'pixel_llm_\w+', note.replace('\n# ', '')):
    assert other in FULL_SIZE and split(other)[0] == split(name)[0]


@pytest.mark.parametrize('recipe', NUMBERS)
def test_twins_differ_only_where_they_must(recipe):
  def read(head):
    recipe_files.parse(f'pixel_llm_{head}_{recipe}')
    return recipe_files.bindings()

  t5, bert = read('t5'), read('bert')
  different = {k for k in t5.keys() | bert.keys() if t5.get(k) != bert.get(k)}
  heads = re.compile(
      r'/.*\.(T5TextConfig|T5TextHead|BertTextHead|VisualProjection)\.'
  )
  macros = {
      name.removesuffix('/gin.macro.value')
      for name in different
      if name.endswith('/gin.macro.value')
  }
  must = {'LANGUAGE_WIDTH', 'VOCABULARY', 'MIXTURE_OR_TASK_NAME'}
  if recipe == 'densecap':  # It is scored on the task that it trains on.
    must |= {'NUM_TEXT_PROPOSALS'}
  else:
    must |= {'EVAL_TASK'}
  if 'refseg' not in recipe:  # There no part of the language model trains.
    must |= {'FROZEN'}
  assert macros == must
  others = {
      name.rpartition('.')[2]
      for name in different
      if not heads.search(name) and not name.endswith('gin.macro.value')
  }
  assert others == {
      'textual',
      'visual_project_layers',
      'begin_token_id',
      'end_token_id',
  }


@pytest.mark.parametrize('name', FULL_SIZE)
def test_a_recipe_trains_and_evaluates_on_tasks_in_its_vocabulary(name):
  head, recipe = split(name)
  recipe_files.parse(name)
  vocabulary = recipe_files.macro('VOCABULARY')
  assert vocabulary is getattr(vocabularies, f'{head}_vocabulary')()
  for macro in ('MIXTURE_OR_TASK_NAME', 'EVAL_TASK'):
    recipe_files.parse(f'pixel_llm_t5_{recipe}')
    t5_name = recipe_files.macro(macro)
    recipe_files.parse(name)
    task = seqio.get_mixture_or_task(recipe_files.macro(macro))
    assert task.name == t5_name + '_bert' * (head == 'bert')
    assert task.output_features['text_tokens'].vocabulary == vocabulary


@pytest.mark.parametrize('name', BUILT)
def test_a_recipe_trains_what_the_published_one_does(name):
  head, recipe = split(name)
  recipe_files.parse(name)
  model, rows = recipe_files.build()
  counts = recipe_files.trained(rows)
  wanted = expected_to_train(head, recipe)
  assert {part: n for part, n in counts.items() if n} == wanted
  assert {'sam_backbone', 'prompt_encoder'} <= counts.keys()
  assert ('mask_decoder' in counts) == ('refseg' in recipe)
  assert ('box_decoder' in counts) == (recipe in (*DECAYING, JOINT_REFSEG))

  is_bert = isinstance(model.module.textual, bert_text_head.BertTextHead)
  assert is_bert == (head == 'bert')
  proposals = {'densecap': 64 if is_bert else 32, JOINT_REF: 16}
  assert model.module.num_text_proposals == proposals.get(
      recipe, model.module.num_text_proposals
  )
  assert model.caption_detections == (recipe == 'densecap')
  assert not model.rescore_detections

  # Rates, where they are not 1.
  factors = {row.name: row.lr_factor for row in rows if row.trained}
  for path, factor in factors.items():
    if recipe == 'refseg' and path.startswith('mask_adapter/'):
      assert factor == 10.0, path
    elif recipe not in DECAYING or not path.startswith('git_backbone/'):
      assert factor == 1.0, path
  if recipe in DECAYING:
    assert factors['git_backbone/blocks.0/attn/q_bias'] == 0.8**24
    assert factors['git_backbone/blocks.23/attn/q_bias'] == 0.8**1
    assert factors['git_backbone/patch_embed.proj/kernel'] == 0.8**25
    assert factors['git_backbone/pos_embed'] == 0.8**25
    assert factors['git_backbone/cls_token'] == 1.0
  decays = any(row.decays for row in rows)
  assert decays == (recipe in DECAYING)


@pytest.mark.parametrize('recipe', ['ref', 'densecap'])
def test_a_tiny_stage_of_the_chain_builds(recipe):
  recipe_files.parse(f'pixel_llm_tiny_{recipe}')
  _, rows = recipe_files.build()
  counts = recipe_files.trained(rows)
  frozen = {part for part, count in counts.items() if not count}
  assert frozen == {'sam_backbone', 'prompt_encoder'}
  assert ('box_decoder' in counts) == (recipe == 'densecap')


# Numbers of values as transformers counts them.
FLAN_T5 = {
    'small': 76_961_152,
    'base': 247_577_856,
    'large': 783_150_080,
    'xxl': 11_135_332_352,
}
LARGER = list(FLAN_T5)[1:]


@pytest.mark.parametrize(
    'size',
    ['small', *(pytest.param(s, marks=pytest.mark.slow) for s in LARGER)],
)
def test_another_size_is_one_more_file(size):
  more = [f'gin/models/flan_t5_{size}.gin', 'gin/models/sam_b.gin']
  recipe_files.parse('pixel_llm_t5_trace', *more)
  _, rows = recipe_files.build()
  counts: dict[str, int] = {}
  for row in rows:
    part = row.name.split('/')[0]
    if 'lora' not in row.name:
      counts[part] = counts.get(part, 0) + row.count
  assert counts['textual'] == FLAN_T5[size]
  # The image encoder of Meta's sam_vit_b_01ec64.pth.
  assert counts['sam_backbone'] == 89_670_912
