import jax.numpy as jnp
import numpy as np

from pixel_llm import rescoring
from pixel_llm.modules import roi_head

DETECTIONS = roi_head.Detections(
    boxes=jnp.arange(12.0).reshape(1, 3, 4),
    scores=jnp.asarray([[0.64, 0.25, 0.0]]),
    classes=jnp.ones((1, 3), jnp.int32),
    mask=jnp.asarray([[True, True, False]]),
)


def test_one_text_keeps_the_order():
  found = rescoring.rescore(
      DETECTIONS,
      jnp.asarray([[[[1, 2]], [[3, 4]], [[5, 6]]]]),
      jnp.log(jnp.asarray([[[0.01], [1.0], [1.0]]])),
  )
  np.testing.assert_allclose(
      found.detections.scores, [[0.08, 0.5, 0.0]], rtol=1e-5
  )
  np.testing.assert_array_equal(found.detections.boxes, DETECTIONS.boxes)
  np.testing.assert_array_equal(found.text_tokens, [[[1, 2], [3, 4], [5, 6]]])


def test_texts_compete_for_the_slots():
  # Pairs: 0.64·0.25, 0.64·0.01; 0.25·1, 0.25·0.16; nothing.
  found = rescoring.rescore(
      DETECTIONS,
      jnp.arange(6).reshape(1, 3, 2, 1),
      jnp.log(jnp.asarray([[[0.25, 0.01], [1.0, 0.16], [1.0, 1.0]]])),
  )
  np.testing.assert_allclose(
      found.detections.scores, [[0.5, 0.4, 0.2]], rtol=1e-5
  )
  np.testing.assert_array_equal(
      found.detections.boxes[0], DETECTIONS.boxes[0][jnp.asarray([1, 0, 1])]
  )
  np.testing.assert_array_equal(found.text_tokens[0, :, 0], [2, 0, 3])
  # Texts of real boxes push empty slots out.
  assert found.detections.mask.tolist() == [[True, True, True]]
