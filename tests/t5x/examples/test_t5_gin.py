"""Every size in gin is a published one, and a run needs no more than its file."""

import math
import pathlib

import jax
import pytest
import seqio

import gin
from t5x import adafactor
from t5x import data_files
from t5x import gin_utils
from t5x import models
from t5x import train_state
from t5x.examples.t5 import network

ROOT = pathlib.Path(network.__file__).parent

# As `transformers` counts `google-t5/t5-*` (1_0) and
# `google/{t5-v1_1,mt5,byt5}-*`.
SIZES = {
    't5_1_0/small': 60_506_624,
    't5_1_0/base': 222_903_552,
    't5_1_0/large': 737_668_096,
    't5_1_0/3B': 2_851_598_336,
    't5_1_0/11B': 11_307_321_344,
    't5_1_1/small': 76_961_152,
    't5_1_1/base': 247_577_856,
    't5_1_1/large': 783_150_080,
    't5_1_1/xl': 2_849_757_184,
    't5_1_1/xxl': 11_135_332_352,
    'mt5/small': 300_176_768,
    'mt5/base': 582_401_280,
    'mt5/large': 1_229_581_312,
    'mt5/xl': 3_742_619_648,
    'mt5/xxl': 12_921_057_280,
    'byt5/small': 299_637_760,
    'byt5/base': 581_653_248,
    'byt5/large': 1_228_183_552,
    'byt5/xl': 3_737_801_728,
    'byt5/xxl': 12_906_899_328,
}
QUICK = {'t5_1_0/small', 't5_1_1/small', 'mt5/small', 'byt5/small'}
FILES = sorted(
    str(file.relative_to(ROOT).with_suffix('')) for file in ROOT.glob('*/*.gin')
)
SHAPES = {'encoder_input_tokens': (1, 4), 'decoder_input_tokens': (1, 4)}


@pytest.fixture(autouse=True)
def clean_gin(monkeypatch):
  monkeypatch.setattr(gin.config, '_LOCATION_PREFIXES', [''])
  gin.clear_config()
  yield
  gin.clear_config()


def build(size, *bindings):
  gin_utils.parse_gin_flags(
      [str(ROOT.parents[2])],
      [f't5x/examples/t5/{size}.gin'],
      ['DROPOUT_RATE = 0.0', *bindings],
      finalize_config=False,
  )
  return gin.query_parameter('%MODEL').scoped_configurable_fn()


def params_of(model):
  variables = jax.eval_shape(
      lambda: model.get_initial_variables(jax.random.PRNGKey(0), SHAPES)
  )
  return variables['params']


@pytest.mark.parametrize('size', FILES)
def test_a_file_gives_a_model_in_bfloat16_with_adafactor(size):
  model = build(size, 'VOCABULARY = None')
  assert isinstance(model, models.EncoderDecoderModel)
  assert isinstance(model.optimizer_def, adafactor.Adafactor)
  assert model.optimizer_def.hyper_params.decay_rate == 0.8
  config = model.module.config
  assert config.dtype == 'bfloat16'
  assert config.logits_via_embedding == size.startswith('t5_1_0')


@pytest.mark.parametrize(
    ('size', 'count'),
    [
        pytest.param(
            size, count, marks=() if size in QUICK else pytest.mark.slow
        )
        for size, count in SIZES.items()
    ],
)
def test_sizes_are_the_published_ones(size, count):
  model = build(size, 'VOCABULARY = None')
  assert count == sum(
      math.prod(leaf.shape) for leaf in jax.tree.leaves(params_of(model))
  )


@pytest.mark.parametrize('size', ['t5_1_1/tiny', 't5_1_0/small'])
def test_the_optimizer_has_a_rule_for_every_axis(size):
  model = build(size, 'VOCABULARY = None')
  variables = jax.eval_shape(
      lambda: model.get_initial_variables(jax.random.PRNGKey(0), SHAPES)
  )
  state = jax.eval_shape(
      lambda variables: train_state.FlaxOptimTrainState.create(
          model.optimizer_def, variables
      ).param_states,
      variables,
  )
  embedding = state['token_embedder']['embedding']
  sizes = (embedding.v_row.shape, embedding.v_col.shape)
  is_tiny = size.endswith('tiny')
  assert sizes == (((1,), (1,)) if is_tiny else ((512,), (32128,)))


def test_the_vocabulary_of_t5_needs_no_network(monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  model = build('t5_1_1/small')
  vocabulary = model.output_vocabulary
  assert vocabulary.vocab_size == 32100
  assert vocabulary.eos_id == 1
  assert vocabulary.decode(vocabulary.encode('A dog.')) == 'A dog.'


def test_byt5_reads_bytes():
  vocabulary = build('byt5/small').output_vocabulary
  assert isinstance(vocabulary, seqio.ByteVocabulary)
  assert vocabulary.vocab_size == 259


def test_the_vocabulary_may_be_replaced_as_in_t5x():
  file = str(ROOT.parents[2] / 'tasks/assets/tokenizers/t5/spiece.model')
  name = 'seqio.SentencePieceVocabulary'
  model = build('mt5/small', f"{name}.sentencepiece_model_file = '{file}'")
  assert model.output_vocabulary.vocab_size == 32000


def test_a_missing_file_is_told_with_the_places_looked_in(
    monkeypatch, tmp_path
):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(FileNotFoundError, match='VOCABULARY_FILE') as error:
    data_files.find_data_file('nowhere.model')
  assert str(tmp_path / 'nowhere.model') in str(error.value)
  assert data_files.find_data_file('gs://any/x.model') == 'gs://any/x.model'
