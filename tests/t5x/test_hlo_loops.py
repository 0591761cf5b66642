"""Trips of loops that only their counters tell, in the forms compilers write."""

import pytest

from t5x import hlo_loops
from t5x import hlo_text

# Each gap takes a line or more of one part of a loop.
LOOP = """\
%fused_add (a: s32[], b: s32[]) -> s32[] {{
  %a = s32[] parameter(0)
  %b = s32[] parameter(1)
  ROOT %sum = s32[] add(%a, %b)
}}

%fused_two (c: s32[]) -> (s32[], s32[]) {{
  %c = s32[] parameter(0)
  %three = s32[] constant(3)
  %more = s32[] add(%three, %c)
  ROOT %pair = (s32[], s32[]) tuple(%c, %more)
}}

%fused_less (d: s32[], e: s32[]) -> pred[] {{
  %d = s32[] parameter(0)
  %e = s32[] parameter(1)
  ROOT %less = pred[] compare(%d, %e), direction=LT
}}

%body (p: (s32[], s32[], f32[])) -> (s32[], s32[], f32[]) {{
  %p = (s32[], s32[], f32[]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %n = s32[] get-tuple-element(%p), index=1
  %x = f32[] get-tuple-element(%p), index=2
  %one = s32[] constant(1)
  {step}
  ROOT %t = (s32[], s32[], f32[]) tuple(%next, %n, %x)
}}

%condition (q: (s32[], s32[], f32[])) -> pred[] {{
  %q = (s32[], s32[], f32[]) parameter(0)
  %q.i = s32[] get-tuple-element(%q), index=0
  %q.n = s32[] get-tuple-element(%q), index=1
  %ten = s32[] constant(10)
  {test}
}}

ENTRY %main (r: s32[], y: f32[]) -> f32[] {{
  %r = s32[] parameter(0)
  %y = f32[] parameter(1)
  %zero = s32[] constant(0)
  %eight = s32[] constant(8)
  %start = (s32[], s32[], f32[]) tuple({start}, %y)
  %loop = (s32[], s32[], f32[]) while(%start), condition=%condition, body=%body
  ROOT %result = f32[] get-tuple-element(%loop), index=2
}}
"""
BY_ONE = '%next = s32[] add(%i, %one)'
TO_TEN = 'ROOT %go = pred[] compare(%q.i, %ten), direction=LT'
FROM_0 = '%zero, %eight'


def trips(step=BY_ONE, test=TO_TEN, start=FROM_0):
  module = hlo_text.parse(LOOP.format(step=step, test=test, start=start))
  loop = module.entry.instructions['loop']
  return hlo_loops.trip_count(module, module.entry, loop)


@pytest.mark.parametrize(
    ('changes', 'expected'),
    [
        ({}, 10),
        ({'start': '%eight, %eight'}, 2),
        (
            {
                'step': '%next = s32[] fusion(%i, %one), kind=kLoop, calls=%fused_add'
            },
            10,
        ),
        (
            {
                'step': '%pair.1 = (s32[], s32[]) fusion(%i), kind=kLoop,'
                ' calls=%fused_two\n'
                '  %next = s32[] get-tuple-element(%pair.1), index=1'
            },
            4,
        ),
        (
            {
                'test': 'ROOT %go = pred[] fusion(%q.i, %ten), kind=kLoop, calls=%fused_less'
            },
            10,
        ),
        ({'test': 'ROOT %go = pred[] compare(%q.i, %ten), direction=LE'}, 11),
        ({'test': 'ROOT %go = pred[] compare(%ten, %q.i), direction=GT'}, 10),
        # The bound is carried, and the same every trip.
        ({'test': 'ROOT %go = pred[] compare(%q.i, %q.n), direction=LT'}, 8),
        (
            {
                'start': '%eight, %zero',
                'test': 'ROOT %go = pred[] compare(%q.i, %q.n), direction=LT',
            },
            0,
        ),
    ],
)
def test_trips_follow_from_constants(changes, expected):
  assert trips(**changes) == expected


@pytest.mark.parametrize(
    'changes',
    [
        {'start': '%r, %eight'},
        {
            'start': '%zero, %r',
            'test': 'ROOT %go = pred[] compare(%q.i, %q.n), direction=LT',
        },
        {'step': '%next = s32[] multiply(%i, %one)'},
        {'step': '%next = s32[] add(%n, %one)'},
        {'test': 'ROOT %go = pred[] compare(%q.i, %ten), direction=NE'},
        {
            'test': '%no = pred[] compare(%q.i, %ten), direction=LT\n  ROOT %go = pred[] not(%no)'
        },
    ],
)
def test_trips_that_data_decide_are_not_known(changes):
  assert trips(**changes) is None
