import json

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import tiny_t5
import transformers

from pixel_llm.modules import t5_text_head
from pixel_llm.pretrained import export_weights
from pixel_llm.pretrained import import_weights
from pixel_llm.pretrained import peft_adapters

SCALES = {'encoder': 2.0, 'decoder': 1.5}
SCALE_FLAGS = ('--encoder_lora_scale=2.0', '--decoder_lora_scale=1.5')


def config(**kwargs):
  theirs, _ = tiny_t5.configs(tied=False)
  adapters = {
      'encoder_lora_rank': 3,
      'decoder_lora_rank': 2,
      'encoder_lora_scale': SCALES['encoder'],
      'decoder_lora_scale': SCALES['decoder'],
      'encoder_lora_modules': 'q,v,o',
      **kwargs,
  }
  return theirs, tiny_t5.our_config(theirs, **adapters)


@pytest.fixture(scope='module')
def params():
  _, ours = config()
  head = t5_text_head.T5TextHead(ours)
  shapes = jax.eval_shape(
      head.init,
      jax.random.key(0),
      tiny_t5.visual(8),
      jnp.asarray(tiny_t5.TOKENS),
      jnp.asarray(tiny_t5.CONTEXT),
  )['params']
  random = np.random.default_rng(1)
  return {
      'textual': jax.tree.map(
          lambda x: random.normal(size=x.shape, scale=0.3).astype(np.float32),
          shapes,
      )
  }


def base_of(params):
  flat = traverse_util.flatten_dict(params, sep='/')
  return traverse_util.unflatten_dict(
      {k: v for k, v in flat.items() if not peft_adapters.is_adapter(k)},
      sep='/',
  )


def load(path, theirs):
  theirs.save_pretrained(path)
  model, info = transformers.T5ForConditionalGeneration.from_pretrained(
      path, output_loading_info=True
  )
  assert not any(info[key] for key in ('missing_keys', 'unexpected_keys'))
  return model.eval()


def test_peft_computes_with_our_adapters_what_we_do(params, export):
  theirs, ours = config()
  base = load(export('t5_hf', base_of(params)), theirs)
  path = export('peft', params, *SCALE_FLAGS)
  loaded = peft.PeftModel.from_pretrained(base, path)
  adapters = peft.get_peft_model_state_dict(loaded)
  # q, v, o of two encoder layers; q, v of twice three in the decoder.
  assert len(adapters) == 2 * (2 * 3 + 3 * 2 * 2)
  tiny_t5.assert_same_activations(ours, params['textual'], loaded.eval())


def test_merged_adapters_compute_the_same_in_transformers_and_here(
    params, export, import_params
):
  theirs, ours = config()
  path = export('t5_hf', params, '--merge_lora', *SCALE_FLAGS)
  merged = load(path, theirs)
  tiny_t5.assert_same_activations(ours, params['textual'], merged)
  imported, _ = import_params(str(path))
  without = ours.replace(encoder_lora_rank=0, decoder_lora_rank=0)
  tiny_t5.assert_same_activations(without, imported['textual'], merged)


def test_adapters_come_back_bit_for_bit_beside_their_base(
    params, export, import_params
):
  adapters = export('peft', params, *SCALE_FLAGS)
  base = export('t5_hf', base_of(params))
  got, report = import_params(str(base), str(adapters))
  assert 'T5TextConfig.encoder_lora_scale must be 2.0' in report
  assert 'T5TextConfig.decoder_lora_scale must be 1.5' in report
  got, want = (traverse_util.flatten_dict(x, sep='/') for x in (got, params))
  assert got.keys() == want.keys()
  for name in want:
    np.testing.assert_array_equal(got[name], want[name])


def test_unmerged_adapters_have_no_place_in_a_t5(params, tmp_path, capsys):
  flat = traverse_util.flatten_dict(params, sep='/')
  import_weights.save(str(tmp_path / 'checkpoint_0'), flat)
  args = [f'--checkpoint={tmp_path}', '--format=t5_hf', '--output']
  assert export_weights.main([*args, str(tmp_path / 'out')]) == 1
  assert '--merge_lora' in capsys.readouterr().err


@pytest.mark.parametrize(
    'change, message',
    [
        ({'use_dora': True}, 'use_dora'),
        ({'r': 5}, 'has rank 3, adapter_config.json says 5'),
        ({'alpha_pattern': {r'encoder\.block\.1.*': 9.0}}, 'one scale a stack'),
    ],
)
def test_adapters_that_we_cannot_hold_are_refused(
    params, export, capsys, change, message
):
  path = export('peft', params, *SCALE_FLAGS)
  file = path / peft_adapters.CONFIG_FILE
  file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
  assert import_weights.main(['--source', str(path)]) == 1
  assert message in capsys.readouterr().err


def test_a_rank_stabilised_scale_divides_by_the_root():
  name = (
      'base_model.model.encoder.block.0.layer.0.SelfAttention.q.lora_{}.weight'
  )
  tensors = {
      name.format('A'): np.ones((4, 8), np.float32),
      name.format('B'): np.ones((12, 4), np.float32),
  }
  adapter_config = {'r': 4, 'lora_alpha': 6, 'use_rslora': True}
  result, scales = peft_adapters.to_ours(tensors, adapter_config)
  assert scales == {'encoder': 3.0}
  assert result.arrays()[
      'encoder/layers_0/attention/query/kernel_left_lora'
  ].shape == (8, 4)
