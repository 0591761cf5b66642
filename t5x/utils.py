"""The names that gin files know as `utils.…`; each lives in its own module."""

from t5x.axis_names import flatten_dict_string_keys
from t5x.axis_names import override_params_axes_names
from t5x.axis_names import round_vocab_size_to_multiple
from t5x.batches import get_zeros_batch_like_dataset
from t5x.batches import get_zeros_batch_like_spec
from t5x.batches import prepare_train_iter
from t5x.checkpoint_config import CheckpointConfig
from t5x.checkpoint_config import RestoreCheckpointConfig
from t5x.checkpoint_config import SaveCheckpointConfig
from t5x.checkpoint_managers import create_orbax_checkpoint_manager
from t5x.datasets import DatasetConfig
from t5x.datasets import get_dataset
from t5x.datasets import get_training_eval_datasets
from t5x.datasets import get_vocabulary
from t5x.datasets import import_module
from t5x.datasets import verify_matching_vocabs
from t5x.inference import get_infer_fn
from t5x.initializer import TrainStateInitializer
from t5x.initializer import create_checkpoint_manager_and_restore
from t5x.learning_rates import LearningRateCallable
from t5x.learning_rates import create_learning_rate_scheduler
from t5x.legacy_manager import LegacyCheckpointManager
from t5x.model_info import log_model_info
from t5x.multihost import get_local_data
from t5x.multihost import multihost_assert_equal
from t5x.multihost import set_hardware_rng_ops
from t5x.multihost import sync_global_devices
from t5x.restoring import get_fallback_state
from t5x.restoring import get_first_valid_restore_config_and_paths
from t5x.restoring import restore

__all__ = (
    'CheckpointConfig',
    'DatasetConfig',
    'LearningRateCallable',
    'LegacyCheckpointManager',
    'RestoreCheckpointConfig',
    'SaveCheckpointConfig',
    'TrainStateInitializer',
    'create_checkpoint_manager_and_restore',
    'create_learning_rate_scheduler',
    'create_orbax_checkpoint_manager',
    'flatten_dict_string_keys',
    'get_dataset',
    'get_fallback_state',
    'get_first_valid_restore_config_and_paths',
    'get_infer_fn',
    'get_local_data',
    'get_training_eval_datasets',
    'get_vocabulary',
    'get_zeros_batch_like_dataset',
    'get_zeros_batch_like_spec',
    'import_module',
    'log_model_info',
    'multihost_assert_equal',
    'override_params_axes_names',
    'prepare_train_iter',
    'restore',
    'round_vocab_size_to_multiple',
    'set_hardware_rng_ops',
    'sync_global_devices',
    'verify_matching_vocabs',
)
