"""Costs of compiled programs against numbers worked by hand."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
import scripts

from t5x import hlo_collectives
from t5x import hlo_costs
from t5x import hlo_text

HERE = pathlib.Path(__file__).parent


@pytest.fixture(scope='module')
def report():
  """Costs of small programs on a mesh of 4 (`data`) x 2 (`model`) devices."""
  environment = scripts.environment() | {
      'JAX_PLATFORMS': 'cpu',
      'XLA_FLAGS': '--xla_force_host_platform_device_count=8',
  }
  result = subprocess.run(
      [sys.executable, HERE / 'hlo_programs.py'],
      env=os.environ | environment,
      capture_output=True,
      text=True,
      timeout=300,
      check=False,
  )
  assert result.returncode == 0, result.stderr
  return json.loads(result.stdout)


def test_a_product_costs_its_flops_and_its_arrays(report):
  costs = report['matmul']
  # Two of eight rows; all of the 16 x 32 weights.
  assert costs['flops'] == 2 * (2 * 16 * 32)
  arrays = 4 * (2 * 16 + 16 * 32 + 2 * 32)
  assert arrays <= costs['hbm_bytes'] <= 1.2 * arrays
  assert costs['collectives'] == []


@pytest.mark.parametrize(
    ('program', 'kind', 'count', 'size', 'sent', 'axes'),
    [
        # 8 x 16 float32 from shards of a quarter: three quarters arrive.
        ('gather', 'all-gather', 1, 512, 384, ['data']),
        # Partial sums [2, 32] of two devices: half there, half back.
        ('reduce', 'all-reduce', 1, 256, 256, ['model']),
        ('scanned', 'all-reduce', 5, 128, 128, ['model']),
        ('nested', 'all-reduce', 15, 128, 128, ['model']),
        ('permute', 'collective-permute', 1, 128, 128, ['data']),
        ('all_to_all', 'all-to-all', 1, 256, 192, ['data']),
    ],
)
def test_collectives_count_once_a_trip(
    report, program, kind, count, size, sent, axes
):
  assert report[program]['collectives'] == [
      {'kind': kind, 'count': count, 'bytes': size, 'sent': sent, 'axes': axes}
  ]


def test_a_lookup_with_products_stays_cut_over_the_batch(report):
  # 2 of 8 rows of 32 tokens, and half of 64 columns; not the whole batch.
  assert report['largest_lookup'] == 2 * 32 * 32


def test_nested_loops_multiply_their_flops(report):
  layer = 2 * (2 * 8 * 16)
  assert report['scanned']['flops'] == 5 * layer
  assert report['nested']['flops'] == 3 * 5 * layer


def test_a_scanned_stack_is_read_once(report):
  # 3 x 5 layers of 8 x 16 weights; the activations are small beside them.
  weights = 3 * 5 * 4 * 8 * 16
  assert weights < report['nested']['hbm_bytes'] < 8 * weights


def test_a_loop_that_data_end_is_told(report):
  costs = report['unknown']
  assert costs['flops'] == 2 * 2 * 16 * 16
  (line,) = costs['unknown_loops']
  assert 'while' in line and 'one trip' in line


# ---- What only TPUs write ---------------------------------------------------

# A loop of 24 - 4 trips, two at a time, that the text does not note; its
# weights lie in HBM, what it carries in the scratchpad. The product is written
# as a convolution. One all-gather is fused in two places.
TPU_TEXT = """\
HloModule jit_step, is_scheduled=true

%start (p.0: bf16[1,128,512]) -> (bf16[1,128,512], bf16[1,512,512], u32[]) {
  %p.0 = bf16[1,128,512]{2,1,0:T(8,128)(2,1)S(1)} parameter(0)
  %all-gather.1 = bf16[1,512,512]{2,1,0:T(8,128)(2,1)} all-gather(%p.0), channel_id=51, replica_groups=[4,4]<=[4,4]T(1,0), dimensions={1}, use_global_device_ids=true
  ROOT %custom-call.1 = (bf16[1,128,512]{2,1,0:S(1)}, bf16[1,512,512]{2,1,0:S(1)}, u32[]{:S(2)}) custom-call(%all-gather.1), custom_call_target="AsyncCollectiveStart"
}

%done (p.1: bf16[1,128,512]) -> bf16[1,512,512] {
  %p.1 = bf16[1,128,512]{2,1,0:T(8,128)(2,1)S(1)} parameter(0)
  %all-gather.2 = bf16[1,512,512]{2,1,0:T(8,128)(2,1)} all-gather(%p.1), channel_id=51, replica_groups=[4,4]<=[4,4]T(1,0), dimensions={1}, use_global_device_ids=true
  ROOT %custom-call.2 = bf16[1,512,512]{2,1,0:T(8,128)(2,1)S(1)} custom-call(%all-gather.2), custom_call_target="AsyncCollectiveDone"
}

%slice_of_weights (p.2: bf16[24,128,512], p.3: s32[]) -> bf16[1,128,512] {
  %p.2 = bf16[24,128,512]{2,1,0:T(8,128)(2,1)} parameter(0)
  %p.3 = s32[]{:T(128)S(6)} parameter(1)
  %zero = s32[]{:T(128)} constant(0)
  ROOT %dynamic-slice.1 = bf16[1,128,512]{2,1,0:T(8,128)(2,1)S(1)} dynamic-slice(%p.2, %p.3, %zero, %zero), dynamic_slice_sizes={1,128,512}
}

%product (p.4: bf16[8,128,512], p.5: bf16[1,512,512]) -> bf16[8,128,512] {
  %p.4 = bf16[8,128,512]{2,1,0:T(8,128)(2,1)S(1)} parameter(0)
  %p.5 = bf16[1,512,512]{2,1,0:T(8,128)(2,1)S(1)} parameter(1)
  ROOT %convolution.1 = bf16[8,128,512]{2,1,0:T(8,128)(2,1)S(1)} convolution(%p.4, %p.5), window={size=1}, dim_labels=0bf_0io->0bf
}

%all-reduce-scatter (p.6: bf16[512,512]) -> bf16[128,512] {
  %p.6 = bf16[512,512]{1,0} parameter(0)
  %all-reduce.1 = bf16[512,512]{1,0} all-reduce(%p.6), channel_id=7, replica_groups=mesh['axis_0'=4,'axis_1'=4] {'axis_0'}, use_global_device_ids=true, to_apply=%add
  %start_of_mine = s32[] constant(128)
  %none = s32[] constant(0)
  ROOT %dynamic-slice.2 = bf16[128,512]{1,0} dynamic-slice(%all-reduce.1, %start_of_mine, %none), dynamic_slice_sizes={128,512}
}

%body (carried: (s32[], bf16[8,128,512], bf16[24,128,512])) -> (s32[], bf16[8,128,512], bf16[24,128,512]) {
  %two = s32[]{:T(128)} constant(2)
  %carried = (s32[]{:T(128)}, bf16[8,128,512]{2,1,0:S(1)}, bf16[24,128,512]{2,1,0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%carried), index=0
  %i.copy = s32[]{:T(128)S(6)} copy(%i)
  %x = bf16[8,128,512]{2,1,0:T(8,128)(2,1)S(1)} get-tuple-element(%carried), index=1
  %weights = bf16[24,128,512]{2,1,0:T(8,128)(2,1)} get-tuple-element(%carried), index=2
  %mine = bf16[1,128,512]{2,1,0:T(8,128)(2,1)S(1)} fusion(%weights, %i.copy), kind=kLoop, calls=%slice_of_weights
  %async-collective-start = (bf16[1,128,512]{2,1,0:S(1)}, bf16[1,512,512]{2,1,0:S(1)}, u32[]{:S(2)}) fusion(%mine), kind=kCustom, calls=%start
  %part = bf16[1,128,512]{2,1,0:T(8,128)(2,1)S(1)} get-tuple-element(%async-collective-start), index=0
  %async-collective-done = bf16[1,512,512]{2,1,0:T(8,128)(2,1)S(1)} fusion(%part), kind=kCustom, calls=%done
  %y = bf16[8,128,512]{2,1,0:T(8,128)(2,1)S(1)} fusion(%x, %async-collective-done), kind=kOutput, calls=%product
  %next = s32[]{:T(128)} add(%i.copy, %two)
  ROOT %tuple.1 = (s32[]{:T(128)}, bf16[8,128,512]{2,1,0:S(1)}, bf16[24,128,512]{2,1,0}) tuple(%next, %y, %weights)
}

%condition (c: (s32[], bf16[8,128,512], bf16[24,128,512])) -> pred[] {
  %end = s32[]{:T(128)} constant(24)
  %c = (s32[]{:T(128)}, bf16[8,128,512]{2,1,0:S(1)}, bf16[24,128,512]{2,1,0}) parameter(0)
  %c.i = s32[]{:T(128)} get-tuple-element(%c), index=0
  ROOT %lt = pred[]{:T(512)} compare(%c.i, %end), direction=LT
}

ENTRY %main (p.7: bf16[8,128,512], p.8: bf16[24,128,512], p.9: bf16[512,512]) -> bf16[128,512] {
  %four = s32[]{:T(128)} constant(4)
  %start_at = s32[]{:T(128)} copy(%four)
  %p.7 = bf16[8,128,512]{2,1,0:T(8,128)(2,1)S(1)} parameter(0)
  %p.8 = bf16[24,128,512]{2,1,0:T(8,128)(2,1)} parameter(1)
  %p.9 = bf16[512,512]{1,0:T(8,128)(2,1)} parameter(2)
  %tuple.2 = (s32[]{:T(128)}, bf16[8,128,512]{2,1,0:S(1)}, /*index=2*/bf16[24,128,512]{2,1,0}) tuple(%start_at, %p.7, %p.8)
  %while.1 = (s32[]{:T(128)}, bf16[8,128,512]{2,1,0:S(1)}, bf16[24,128,512]{2,1,0}) while(%tuple.2), condition=%condition, body=%body, metadata={op_name="jit(step)/while"}
  ROOT %scattered = bf16[128,512]{1,0:T(8,128)(2,1)} fusion(%p.9), kind=kCustom, calls=%all-reduce-scatter
}
"""

TRIPS = 10


@pytest.fixture(scope='module')
def tpu_costs():
  return hlo_costs.count(TPU_TEXT, 16)


def test_the_trips_of_a_tpu_loop_follow_from_its_counter(tpu_costs):
  assert tpu_costs.flops == TRIPS * 2 * (8 * 128) * 512 * 512
  assert not tpu_costs.unknown_loops


def test_asynchronous_parts_of_a_collective_count_once(tpu_costs):
  gather, scatter = tpu_costs.collectives
  assert gather == (
      hlo_collectives.Collective('all-gather', 2 * 512 * 512, (0, 4, 8, 12)),
      TRIPS,
  )
  assert gather[0].axes({'data': 4, 'model': 4}) == ('data',)
  # Written as a fusion around an all-reduce.
  assert scatter == (
      hlo_collectives.Collective(
          'reduce-scatter', 2 * 512 * 512, (0, 4, 8, 12)
      ),
      1,
  )


def test_a_collective_that_goes_on_in_an_inner_loop_counts_once():
  """The middle part is fused into other work, every trip of a loop."""
  costs = hlo_costs.count(
      """
%start (p.0: bf16[128,512]) -> (bf16[128,512], bf16[512,512]) {
  %p.0 = bf16[128,512]{1,0} parameter(0)
  %all-gather.1 = bf16[512,512]{1,0} all-gather(%p.0), channel_id=5, replica_groups=[4,4]<=[16], dimensions={0}, use_global_device_ids=true
  ROOT %custom-call.1 = (bf16[128,512]{1,0}, bf16[512,512]{1,0}) custom-call(%all-gather.1), custom_call_target="AsyncCollectiveStart"
}

%middle (p.1: bf16[128,512], p.2: bf16[512,512]) -> (bf16[128,512], bf16[512,512]) {
  %p.1 = bf16[128,512]{1,0} parameter(0)
  %p.2 = bf16[512,512]{1,0} parameter(1)
  %all-gather.2 = bf16[512,512]{1,0} all-gather(%p.1), channel_id=5, replica_groups=[4,4]<=[16], dimensions={0}, use_global_device_ids=true
  ROOT %pair = (bf16[128,512]{1,0}, bf16[512,512]{1,0}) tuple(%p.1, %all-gather.2)
}

%body (c: (s32[], bf16[128,512], bf16[512,512])) -> (s32[], bf16[128,512], bf16[512,512]) {
  %c = (s32[], bf16[128,512]{1,0}, bf16[512,512]{1,0}) parameter(0)
  %a = bf16[128,512]{1,0} get-tuple-element(%c), index=1
  %b = bf16[512,512]{1,0} get-tuple-element(%c), index=2
  %i = s32[] get-tuple-element(%c), index=0
  %on = (bf16[128,512]{1,0}, bf16[512,512]{1,0}) fusion(%a, %b), kind=kOutput, calls=%middle
  %a.1 = bf16[128,512]{1,0} get-tuple-element(%on), index=0
  %b.1 = bf16[512,512]{1,0} get-tuple-element(%on), index=1
  ROOT %t = (s32[], bf16[128,512]{1,0}, bf16[512,512]{1,0}) tuple(%i, %a.1, %b.1)
}

%condition (d: (s32[], bf16[128,512], bf16[512,512])) -> pred[] {
  %d = (s32[], bf16[128,512]{1,0}, bf16[512,512]{1,0}) parameter(0)
  ROOT %go = pred[] constant(true)
}

ENTRY %main (q: bf16[128,512], n: s32[]) -> bf16[512,512] {
  %q = bf16[128,512]{1,0} parameter(0)
  %n = s32[] parameter(1)
  %begun = (bf16[128,512]{1,0}, bf16[512,512]{1,0}) fusion(%q), kind=kCustom, calls=%start
  %x = bf16[128,512]{1,0} get-tuple-element(%begun), index=0
  %y = bf16[512,512]{1,0} get-tuple-element(%begun), index=1
  %first = (s32[], bf16[128,512]{1,0}, bf16[512,512]{1,0}) tuple(%n, %x, %y)
  %while = (s32[], bf16[128,512]{1,0}, bf16[512,512]{1,0}) while(%first), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"8"}}
  ROOT %z = bf16[512,512]{1,0} get-tuple-element(%while), index=2
}
""",
      16,
  )
  ((found, count),) = costs.collectives
  assert (found.kind, found.num_bytes, count) == ('all-gather', 2**19, 1)
  # Its shard and its result, once.
  assert costs.hbm_bytes <= 2 * (2 * 128 * 512) + 2**19


def test_only_what_leaves_the_main_memory_counts(tpu_costs):
  sliced = TRIPS * 2 * 128 * 512
  scattered = 2 * 512 * 512 + 2 * 128 * 512
  flags = tpu_costs.hbm_bytes - sliced - scattered
  # Counters of four bytes.
  assert 0 <= flags <= 500


@pytest.mark.parametrize(
    ('text', 'group'),
    [
        ('replica_groups={{0,2},{1,3}}', (0, 2)),
        ('replica_groups=[2,4]<=[8]', (0, 1, 2, 3)),
        ('replica_groups=[4,2]<=[2,4]T(1,0)', (0, 4)),
        ("replica_groups=mesh['a'=2,'b'=4] {'a'}", (0, 4)),
        ("replica_groups=mesh['a'=2,'b'=4] {'b':(2)2}", (0, 1)),
        ("replica_groups=mesh['a'=2,'b'=4] {'b':(1)2}", (0, 2)),
        (
            "replica_groups=mesh['a'=2,'b'=2], device_ids=(3,1,2,0) {'b'}",
            (3, 1),
        ),
        (
            "replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}",
            (0, 4),
        ),
        ('replica_groups={}', tuple(range(8))),
    ],
)
def test_groups_are_read_in_every_form(text, group):
  module = hlo_text.parse(f"""
ENTRY %main (p: f32[4]) -> f32[4] {{
  %p = f32[4]{{0}} parameter(0)
  ROOT %all-reduce = f32[4]{{0}} all-reduce(%p), channel_id=1, {text}, to_apply=%add
}}
""")
  found = hlo_collectives.collective_of(module.entry, module.entry.root, 8)
  assert found == hlo_collectives.Collective('all-reduce', 16, group)


def test_what_goes_between_slices_is_a_send_to_the_network():
  costs = hlo_costs.count("""
ENTRY %main (p: bf16[1,8,128]) -> bf16[1,8,128] {
  %p = bf16[1,8,128]{2,1,0} parameter(0)
  %token = token[] after-all()
  %send = (bf16[1,8,128]{2,1,0}, u32[]{:S(2)}, token[]) send(%p, %token), channel_id=4, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_host_transfer_rendezvous="all-reduce.1_0",_xla_megascale_reduce_operation="SUM",_xla_megascale_target="{1,3:4}x{0:15}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %send-done = token[] send-done(%send), channel_id=4, is_host_transfer=true
  %recv = (bf16[1,8,128]{2,1,0}, u32[]{:S(2)}, token[]) recv(%token), channel_id=5, is_host_transfer=true
  %recv-done = (bf16[1,8,128]{2,1,0}, token[]) recv-done(%recv), channel_id=5, is_host_transfer=true
  ROOT %result = bf16[1,8,128]{2,1,0} get-tuple-element(%recv-done), index=0
}
""")
  ((found, count),) = costs.collectives
  assert (found.kind, found.num_slices, count) == ('all-reduce', 3, 1)
  assert found.num_bytes == 2048
  assert found.sent_bytes == pytest.approx(2 * 2 / 3 * 2048)
  assert found.axes({'replica': 3, 'data': 16}) == ('slices',)
  assert costs.hbm_bytes == 2 * 2048


def test_a_batched_product_of_a_tpu_counts_only_real_pairs():
  """A batch of 8 and of 2 heads, written as a dilated convolution."""
  costs = hlo_costs.count("""
ENTRY %main (q: bf16[8,128,2,64], k: bf16[8,128,2,64]) -> bf16[8,2,128,128] {
  %q = bf16[8,128,2,64]{1,3,2,0} parameter(0)
  %k = bf16[8,128,2,64]{1,3,2,0} parameter(1)
  ROOT %convolution = bf16[8,2,128,128]{2,3,1,0} convolution(%q, %k), window={size=8x2 stride=7x1 lhs_dilate=8x2}, dim_labels=0b1f_0o1i->01bf
}
""")
  assert costs.flops == 2 * 8 * 2 * 128 * 128 * 64


def test_text_that_is_no_program_is_refused():
  with pytest.raises(ValueError, match='no ENTRY'):
    hlo_text.parse('HloModule nothing')
