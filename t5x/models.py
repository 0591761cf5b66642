"""Models: what gin files, trainers and subclasses name, in one place."""

from t5x.base_model import BaseModel
from t5x.base_model import Batch
from t5x.base_model import DecodeFnCallable
from t5x.base_model import MetricsMap
from t5x.base_model import TokensIdsToLogitsCallable
from t5x.decoder_only_model import DecoderOnlyModel
from t5x.decoder_only_model import remove_prefix
from t5x.encoder_decoder_model import DecoderParams
from t5x.encoder_decoder_model import EncoderDecoderModel
from t5x.token_metrics import compute_base_metrics
from t5x.token_metrics import count_packed_examples
from t5x.transformer_models import BaseTransformerModel
from t5x.transformer_models import get_input_vocabulary
from t5x.transformer_models import get_output_vocabulary

__all__ = [
    'BaseModel',
    'BaseTransformerModel',
    'Batch',
    'DecodeFnCallable',
    'DecoderOnlyModel',
    'DecoderParams',
    'EncoderDecoderModel',
    'MetricsMap',
    'TokensIdsToLogitsCallable',
    'compute_base_metrics',
    'count_packed_examples',
    'get_input_vocabulary',
    'get_output_vocabulary',
    'remove_prefix',
]
