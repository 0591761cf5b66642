"""The public names of t5x, the order of their arguments and their defaults.

User code written for T5X passes arguments by position and leaves defaults out,
so both are fixed. An argument that we add comes after T5X's and has a default.
`…` stands for a default that is an object, such as a function.
"""

import ast
import importlib
import inspect

import pytest

_SIGNATURES = {
    'models': """
BaseModel(optimizer_def)
BaseModel.loss_fn(self, params, batch, dropout_rng)
BaseModel.eval_fn(self, params, batch)
BaseModel.predict_batch(self, params, batch, rng=None)
BaseModel.predict_batch_with_aux(self, params, batch, rng=None)
BaseModel.score_batch(self, params, batch, return_intermediates=False)
BaseModel.get_initial_variables(self, rng, input_shapes, input_types=None)
BaseTransformerModel(module, input_vocabulary, output_vocabulary, optimizer_def, decode_fn=None, label_smoothing=0., z_loss=0., loss_normalizing_factor=None)
BaseTransformerModel._compute_logits(self, params, batch, dropout_rng=None)
EncoderDecoderModel(module, input_vocabulary, output_vocabulary, optimizer_def, decode_fn=…, feature_converter_cls=None, label_smoothing=0., z_loss=0., loss_normalizing_factor=None, default_decoder_params=None)
EncoderDecoderModel.predict_batch_with_aux(self, params, batch, rng=None, decoder_params=None, return_all_decodes=None, num_decodes=None, prompt_with_targets=False)
EncoderDecoderModel.score_batch(self, params, batch, return_intermediates=False)
EncoderDecoderModel._compute_logits_from_slice(self, decoding_state, params, encoded_inputs, raw_inputs, max_decode_length)
EncoderDecoderModel._compute_kv_cache(self, params, encoded_inputs, encoder_input_tokens, decoder_input_tokens)
DecoderOnlyModel(module, vocabulary, optimizer_def, decode_fn=…, inputs_bidirectional_attention=False)
DecoderParams(return_all_decodes=False, num_decodes=1)
compute_base_metrics(logits, targets, mask, loss, z_loss=None, segment_ids=None)
remove_prefix(sequence, prefix_length)
""",
    'losses': """
cross_entropy_with_logits(logits, soft_targets, z_loss)
compute_weighted_cross_entropy(logits, targets, weights=None, label_smoothing=0., z_loss=0., loss_normalizing_factor=None)
get_loss_normalizing_factor_and_weights(loss_normalizing_factor, batch)
_sum_weights_per_segment(positions, segment_ids, weights)
""",
    'trainer': """
Trainer(model, train_state, partitioner, eval_names, summary_dir, train_state_axes, rng, learning_rate_fn, num_microbatches, weight_metrics_computer=None)
BaseTrainer(model, train_state, partitioner, eval_names, summary_dir, train_state_axes, rng)
BaseTrainer.train(self, batch_iter, num_steps, start_step=None)
BaseTrainer.compile_train(self, batch)
MetricsManager(name, summary_dir=None)
EarlyStoppingAction(metric, mode, patience=3, atol=0., rtol=0.)
TerminateOnNanAction(task, metric='loss')
accumulate_grads_microbatched(model, train_state, batch, dropout_rng, num_microbatches, data_partition_spec=…)
apply_grads(train_state, grads, metrics, learning_rate, weight_metrics_computer, other_state_variables=None)
eval_step(model, train_state, batch)
""",
    'train_state': """
FlaxOptimTrainState(_optimizer, params_axes=None, flax_mutables=…, flax_mutables_axes=None)
FlaxOptimTrainState.create(optimizer_def, model_variables)
FlaxOptimTrainState.apply_gradient(self, grads, learning_rate, flax_mutables=…)
InferenceState(step, params)
InferenceState.create(model_variables)
""",
    'partitioning': """
PjitPartitioner(num_partitions=None, model_parallel_submesh=None, params_on_devices=True, backend=None, ici_mesh_shape=None, dcn_mesh_shape=None, logical_axis_rules=None)
PjitPartitioner.get_data_layout(self, batch_size=None)
PjitPartitioner.partition(self, fn, in_axis_resources, out_axis_resources, static_argnums=(), donate_argnums=())
standard_logical_axis_rules(activation_partitioning_dims=1, parameter_partitioning_dims=1, additional_rules=None)
DataLayout(batch_size, shard_id, num_shards, is_first_host_in_replica_set)
LocalChunkInfo(slice, replica_id)
PjittedFnWithContext(fn, mesh, rules=…)
""",
    'utils': """
DatasetConfig(mixture_or_task_name, task_feature_lengths, split, batch_size, shuffle, seed, use_cached=False, pack=False, use_custom_packing_ops=False, module=None, use_memory_cache=True, trim_output_features=True, runtime_preprocessors=None, num_prefetch_threads=None, num_workers=0)
SaveCheckpointConfig(dtype='float32', period=None, checkpoint_steps=None, keep=None, keep_dataset_checkpoints=None, save_dataset=False, checkpointer_cls=…, state_transformation_fns=…, checkpoint_manager_cls=…)
RestoreCheckpointConfig(path, mode='latest', assignment_map=None, strict=True, fallback_to_scratch=False, dtype=None, restore_dataset=False, checkpointer_cls=…, state_transformation_fns=…, checkpoint_manager_cls=…)
CheckpointConfig(save=None, restore=None)
get_dataset(cfg, shard_id, num_shards, feature_converter_cls, num_epochs=None, continue_from_last_checkpoint=False)
get_training_eval_datasets(cfg, shard_id, num_shards, eval_steps, feature_converter_cls)
create_learning_rate_scheduler(factors='constant * linear_warmup * rsqrt_decay', base_learning_rate=0.5, warmup_steps=1000, decay_factor=0.5, steps_per_decay=20000, steps_per_cycle=100000, step_offset=0, min_learning_rate=1e-8)
TrainStateInitializer(optimizer_def, init_fn, input_shapes, partitioner, input_types=None)
get_infer_fn(infer_step, batch_size, train_state_axes, partitioner, keep_aux_as_numpy=False)
verify_matching_vocabs(cfg, model)
round_vocab_size_to_multiple(vocabulary, divisor=128)
""",
    'adafactor': """
Adafactor(learning_rate=None, factored=True, multiply_by_parameter_scale=True, beta1=None, decay_rate=0.8, step_offset=0, clipping_threshold=1.0, weight_decay_rate=None, min_dim_size_to_factor=128, epsilon1=1e-30, epsilon2=1e-3, dtype_momentum=…, factor_map=None, logical_factor_rules=None, weight_decay_rate_lr_exponent=None, global_norm_clip_threshold=None, max_parameter_scale=None, skip_nan_updates=False)
_AdafactorParamState(v_row, v_col, v, m)
""",
    'decoding': """
temperature_sample(inputs, cache, tokens_to_logits, eos_id, decode_rng=None, num_decodes=1, temperature=1.0, topk=1, topp=0.0, cache_offset=0, initial_index=None, max_decode_steps=None, max_decode_steps_hard_limit=None, rescale_log_probs=True, state_callback_fn=None, logit_callback_fn=None)
_temperature_sample_single_trial(inputs, cache, tokens_to_logits, eos_id, prng_key, num_decodes=1, temperature=1.0, topk=20, topp=0.0)
beam_search(inputs, cache, tokens_to_logits, eos_id, num_decodes=4, alpha=0.6, max_decode_len=None, max_decode_step=-1, min_log_prob=-1e7, decode_rng=None, cache_offset=0, initial_index=None)
DecodingState(cur_index, sequences, cur_token, cache)
SamplingLoopState(step, cur_index, sequences, cache, cur_token, ended, rng, log_prob)
flat_batch_beam_expand(x, beam_size, offset=0)
cache_map(fn, cache, apply_to_index=False)
""",
    'checkpoints': """
OrbaxCheckpointManagerInterface(directory, train_state, partitioner, dataset_iterator=None, save_dtype=None, restore_dtype=None, keep=None, period=1, checkpoint_steps=None, keep_dataset_checkpoints=None, force_keep_period=None, metric_name_to_monitor=None, metric_mode='max', keep_checkpoints_without_metrics=True)
OrbaxCheckpointManagerInterface.save(self, train_state, state_transformation_fns=(), force=True)
load_t5x_checkpoint(path, step=None, state_transformation_fns=(), remap=True, restore_dtype=None, lazy_parameters=False)
""",
    'checkpoint_utils': """
pin_checkpoint(ckpt_dir, txt='1')
remove_dataset_checkpoint(ckpt_dir, train_ds_prefix)
""",
    'gin_utils': """
parse_gin_flags(gin_search_paths, gin_files, gin_bindings, skip_unknown=False, finalize_config=True)
get_gin_config_str(show_provenance=False)
summarize_gin_config(model_dir, summary_writer, step)
""",
    'interactive_model': """
InteractiveModel(batch_size, task_feature_lengths, output_dir, partitioner, model, dtype, restore_mode, checkpoint_path, input_shapes, input_types=None, init_random_seed=42, add_eos=True, eval_names=None)
InteractiveModel.train_step(self, examples)
InteractiveModel.train_step_with_preprocessors(self, examples, preprocessors)
InteractiveModel.infer_with_preprocessors(self, mode, examples, preprocessors)
InteractiveModel.predict_with_aux(self, examples)
InteractiveModel.score(self, examples)
InteractiveModel.evaluate(self, examples, metric_fns)
InteractiveModel.evaluate_with_preprocessors(self, examples, preprocessors, metric_fns, postprocessor=None)
InteractiveModel.train_loop(self, num_steps, eval_period=1, train_batches=None, predict_batches=None, score_batches=None, eval_batches=None, metrics_fns=None)
get_dataset_from_natural_text_examples(examples, preprocessors, task_feature_lengths, features)
get_batches_from_seqio(task_or_mixture_name, split, batch_size, num_batches, get_pretokenized_examples=True, sequence_length=None)
get_seqio_task_from_examples(task_name, interactive_model, examples, preprocessors, metric_fns=None, add_to_registry=True)
get_gin_config_from_interactive_model(interactive_model, script_type, task_name, partitioner_config_str, model_config_str, train_steps=1, imports_str='')
""",
    'state_utils': """
flatten_state_dict(state_dict, keep_empty_nodes=False)
merge_state(state_dict, merge_state_dict, overwrite=False)
""",
}

_NAMES = {
    'models': 'DecodeFnCallable TokensIdsToLogitsCallable',
    'metrics': (
        'Sum Step AveragePerStep Time TimeRate StepsPerTime'
        ' set_time_metrics_duration set_step_metrics_num_steps'
        ' create_metrics_dict shape_obj_to_defined_obj is_metric_obj'
    ),
    'losses': 'SpecialLossNormalizingFactor',
    'decoding': (
        'NEG_INF MIN_TEMPERATURE BeamState brevity_penalty add_beam_dim'
        ' flatten_beam_dim unflatten_beam_dim gather_beams gather_topk_beams'
        ' cache_gather_beams top_k_two_stage beam_init _left_align_prompts'
        ' _right_align_prompts'
    ),
    'partitioning': (
        'BasePartitioner BasePjitPartitioner default_mesh get_mesh'
        ' bounds_from_last_device get_coords LocalChunker AxisNames'
        ' with_sharding_constraint host_local_array_to_global_array'
        ' PartitionSpec Mesh'
    ),
    'train_state': 'TrainState EMPTY_DICT',
    'optimizers': (
        'OptimizerState OptimizerDef OptimizerDefType Optimizer OptaxWrapper'
        ' wrap_optax_optimizer MultiOptimizer chain adabelief adagrad adam'
        ' adamw fromage lars lamb lion noisy_sgd radam rmsprop sgd yogi dpsgd'
    ),
    'adafactor': (
        'FactorDim HEURISTIC_RULE HParamMap standard_logical_factor_rules'
        ' _AdafactorHyperParams'
    ),
    'trainer': (
        'train_with_lr WeightMetricsComputer PreemptionError BaseAction'
        ' ActionMode'
    ),
    'checkpoints': (
        'Checkpointer SaveBestCheckpointer all_steps latest_step'
        ' get_checkpoint_dir get_step_from_checkpoint_dir'
        ' get_checkpoint_prefix find_checkpoint'
    ),
    'checkpoint_utils': (
        'unpin_checkpoint is_pinned_checkpoint pinned_checkpoint_filepath'
        ' remove_checkpoint_dir detect_checkpoint_type CheckpointTypes'
    ),
    'checkpoint_importer': 'LazyArray',
    'interactive_model': 'InferenceType T5XScriptType',
    'gin_utils': 'rewrite_gin_args run sum_fn bool_fn string_split_fn',
    'state_utils': (
        'tensorstore_leaf get_name_tree intersect_state apply_assignment_map'
    ),
    'utils': (
        'prepare_train_iter get_first_valid_restore_config_and_paths'
        ' get_fallback_state create_checkpoint_manager_and_restore'
        ' create_orbax_checkpoint_manager restore LegacyCheckpointManager'
        ' log_model_info get_vocabulary override_params_axes_names'
        ' get_zeros_batch_like_spec get_zeros_batch_like_dataset'
        ' flatten_dict_string_keys import_module sync_global_devices'
        ' multihost_assert_equal get_local_data set_hardware_rng_ops'
    ),
}


def _lines():
  for module, text in _SIGNATURES.items():
    for line in text.strip().splitlines():
      yield pytest.param(module, line, id=f'{module}.{line.split("(")[0]}')


def _expected(line):
  """Reads a line of the table into [(argument, default node or None)]."""
  head = ast.parse(f'def f({line.split("(", 1)[1]}: pass'.replace('…', '...'))
  arguments = head.body[0].args  # pyright: ignore
  names = [argument.arg for argument in arguments.args]
  missing = len(names) - len(arguments.defaults)
  return list(zip(names, [None] * missing + arguments.defaults, strict=True))


def _same_default(parameter, node):
  if node is None:
    return parameter.default is parameter.empty
  if isinstance(node, ast.Constant) and node.value is ...:
    return parameter.default is not parameter.empty
  return parameter.default == ast.literal_eval(node)


@pytest.mark.parametrize('module, line', list(_lines()))
def test_arguments_come_in_the_order_and_with_the_defaults_of_t5x(module, line):
  found = importlib.import_module(f't5x.{module}')
  for part in line.split('(')[0].split('.'):
    found = getattr(found, part)
  parameters = list(inspect.signature(found).parameters.values())
  expected = _expected(line)

  names = [parameter.name for parameter in parameters]
  assert names[: len(expected)] == [name for name, _ in expected]
  for parameter, (name, node) in zip(parameters, expected, strict=False):
    assert _same_default(parameter, node), name
  for parameter in parameters[len(expected) :]:
    optional = parameter.kind in (
        parameter.VAR_KEYWORD,
        parameter.VAR_POSITIONAL,
    )
    assert optional or parameter.default is not parameter.empty, parameter


@pytest.mark.parametrize('module', sorted(_NAMES))
def test_every_public_name_is_there(module):
  found = importlib.import_module(f't5x.{module}')
  assert [n for n in _NAMES[module].split() if not hasattr(found, n)] == []


_ENTRIES = {
    'loop.train': """
model, train_dataset_cfg, train_eval_dataset_cfg, infer_eval_dataset_cfg, checkpoint_cfg, partitioner, trainer_cls, model_dir, total_steps, eval_steps, eval_period, random_seed, summarize_config_fn, relative_steps=None, stats_period=None, use_hardware_rng=False, inference_evaluator_cls=…, get_dataset_fn=…, concurrent_metrics=True, actions=None, train_eval_get_dataset_fn=…, run_eval_before_training=False, train_state_initializer_cls=…, use_orbax=True, verify_matching_vocabs_fn=…, gc_period=0
""",
    'checkpoint_evaluation.evaluate': """
model, dataset_cfg, restore_checkpoint_cfg, partitioner, output_dir, inference_evaluator_cls=…, training_evaluator_cls=None, summarize_config_fn=…, train_state_initializer_cls=…, train_eval_get_dataset_fn=…, fallback_init_rng=None, use_orbax=True
""",
    'chunked_inference.infer': """
mode, model, dataset_cfg, restore_checkpoint_cfg, partitioner, output_dir, checkpoint_period, shard_id=0, num_shards=1, merge_chunked_results=True, write_fn=…, checkpoint_ds_iter=True, train_state_initializer_cls=…, fallback_init_rng=None, merge_fn=…, summarize_config_fn=…, verify_matching_vocabs_fn=…, output_vocab_feature_name='targets', file_extension='jsonl', keep_aux_as_numpy=False, use_orbax=True
""",
}


@pytest.mark.parametrize('name', sorted(_ENTRIES))
def test_entry_functions_take_t5xs_keywords_with_their_defaults(name):
  module, function = name.split('.')
  found = getattr(importlib.import_module(f't5x.{module}'), function)
  parameters = dict(inspect.signature(found).parameters)
  for argument, node in _expected(f'f({_ENTRIES[name].strip()})'):
    parameter = parameters.pop(argument)
    assert parameter.kind is parameter.KEYWORD_ONLY, argument
    assert _same_default(parameter, node), argument
  for parameter in parameters.values():
    assert parameter.default is not parameter.empty, parameter
