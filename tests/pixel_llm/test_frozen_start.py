import numpy as np
import pytest

from pixel_llm import frozen_start


def state(**parts):
  return {'target': parts, 'state': {'step': np.zeros(())}}


BLOCK = {'bias': np.zeros((3, 2))}
RUN = state(
    # Scanned: two layers in one array.
    git_backbone={'blocks': BLOCK},
    mask_adapter={'gate': np.zeros(1)},
    mask_decoder={'iou_token': np.zeros(4)},
)
WITHOUT_MASKS = state(git_backbone={'blocks': BLOCK})


def test_what_trains_may_be_missing():
  stored = state(
      git_backbone={'blocks': BLOCK},
      mask_decoder={'iou_token': np.zeros(4)},
  )
  frozen = ('^(?!mask_adapter/)',)
  assert frozen_start.require_frozen(stored, RUN, frozen) is stored


def test_what_is_frozen_may_not_be_missing():
  with pytest.raises(ValueError) as error:
    frozen_start.require_frozen(WITHOUT_MASKS, RUN, ('mask_decoder',))
  message = str(error.value)
  assert "1 frozen parameters of ['mask_decoder']" in message
  assert "'mask_decoder/iou_token'" in message
  assert 'import_weights' in message and 'INITIAL_CHECKPOINT_SKIPS' in message


def test_layers_of_a_scanned_stack_have_their_unrolled_names():
  stored = state(mask_decoder={'iou_token': np.zeros(4)})
  with pytest.raises(ValueError, match="such as 'git_backbone/blocks/bias'"):
    frozen_start.require_frozen(stored, RUN, (r'git_backbone/blocks\.1/',))


def test_a_run_that_resumes_reads_its_own():
  frozen = ('mask_decoder',)
  assert (
      frozen_start.require_frozen(WITHOUT_MASKS, RUN, frozen, is_resuming=True)
      is WITHOUT_MASKS
  )
