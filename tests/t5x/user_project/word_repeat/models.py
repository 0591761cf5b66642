"""The project's model: T5X's, with a penalty in the loss."""

from clu import metrics as clu_metrics
import jax
import jax.numpy as jnp
import seqio

from t5x import decoding
from t5x import metrics as metrics_lib
from t5x import models
from t5x import optimizers


class PenalizedModel(models.EncoderDecoderModel):

  def __init__(
      self,
      module,
      input_vocabulary: seqio.Vocabulary,
      output_vocabulary: seqio.Vocabulary,
      optimizer_def: optimizers.OptimizerDefType,
      decode_fn: models.DecodeFnCallable = decoding.temperature_sample,
      penalty: float = None,
      **kwargs,
  ):
    super().__init__(
        module,
        input_vocabulary,
        output_vocabulary,
        optimizer_def,
        decode_fn=decode_fn,
        **kwargs,
    )
    self._penalty = penalty

  def loss_fn(self, params, batch, dropout_rng):
    loss, metrics = super().loss_fn(params, batch, dropout_rng)
    squares = sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(params))
    penalty = self._penalty * squares
    metrics.update(
        {
            'penalty': metrics_lib.AveragePerStep(total=penalty),
            'batch_share': clu_metrics.Average(
                total=jnp.sum(batch['decoder_loss_weights']),
                count=batch['decoder_target_tokens'].size,
            ),
        }
    )
    return loss + penalty, metrics
