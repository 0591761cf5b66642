"""XLA's memory plan, read from its text."""

from t5x import buffer_assignment

PLAN = """\
BufferAssignment:
allocation 0: size 512, color 6, thread-local:
 value: <28 select.9 @6> (size=512,offset=0): pred[]{:T(512)S(6)}
allocation 1: size 4000, parameter 0, shape |f32[1000]| at ShapeIndex {}, maybe-live-out:
 value: <92 param @0> (size=4000,offset=0): f32[1000]{0:T(1024)}
 value: <99 fusion.5 @0> (size=4000,offset=0): f32[1000]{0:T(1024)}
allocation 2: size 800, parameter 1, shape |f32[200]| at ShapeIndex {}:
 value: <93 param.1 @0> (size=800,offset=0): f32[200]{0}
allocation 3: size 16, output shape is |(f32[1000], f32[])|, maybe-live-out:
 value: <128 tuple.3{} @0> (size=16,offset=0): (f32[1000]{0}, f32[])
allocation 4: size 9000, preallocated-temp:
 value: <94 fusion.1 @0> (size=8000,offset=0): bf16[4000]{0:T(1024)(2,1)}
 value: <95 sort.14{1} @0> (size=8000,offset=0): s32[2000]{0}
 value: <96 fusion.2 @0> (size=1000,offset=8000): f32[250]{0}

Total bytes used: 13828 (13.5KiB)
"""


def test_allocations_are_summed_by_use():
  totals = buffer_assignment.totals(buffer_assignment.parse(PLAN))
  assert totals == buffer_assignment.Totals(
      arguments=4800, temporaries=9000, outputs=4016, aliased=4000
  )


def test_arrays_that_share_a_place_are_named_once():
  plan = buffer_assignment.parse(PLAN)
  found = buffer_assignment.largest_temporaries(plan, 3)
  assert [(v.name, v.size) for v in found] == [
      ('fusion.1', 8000),
      ('fusion.2', 1000),
      ('tuple.3', 16),
  ]
