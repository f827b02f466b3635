"""Bytes and axes of collectives, of small programs on eight devices whose traffic is known."""
import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from veojax import sharding
from veojax.compiling import collectives
from veojax.compiling.program import Program

SIZE = 512 * 4  # bytes of a device's part, float32[512]


def sent(function, out=None):
  """{(axes, kind): bytes} of a function of float32[512] on each device of a mesh of 2 x 2 x 2."""
  return {(t.axes, t.kind): t.sent for t in traffic(function, out)}


def traffic(function, out=None, domains=None):
  mesh = sharding.make_mesh(sharding.MeshConfig(data=1, fsdp=2, context=2, tensor=2))
  every = P(('fsdp', 'context', 'tensor'))
  with jax.set_mesh(mesh):
    mapped = jax.shard_map(function, in_specs=every, out_specs=out or every, check_vma=False)
    x = jax.ShapeDtypeStruct((8 * 512,), jnp.float32, sharding=sharding.named(mesh, every))
    text = jax.jit(mapped).lower(x).compile().as_text()
  return collectives.by_axis(collectives.collect(Program(text), dict(mesh.shape), domains), link=1e9, network=1e8)


def test_all_reduce_sends_twice_what_others_hold():
  assert sent(lambda x: jax.lax.psum(x, 'tensor')) == {('tensor', 'all-reduce'): 2 * SIZE / 2}
  both = sent(lambda x: jax.lax.psum(x, ('fsdp', 'tensor')))
  assert both == {('fsdp+tensor', 'all-reduce'): 2 * SIZE * 3 / 4}


def test_all_gather_sends_its_part_to_each_other():
  gather = lambda x: jax.lax.all_gather(x, ('fsdp', 'context'), tiled=True)
  assert sent(gather, out=P('tensor')) == {('fsdp+context', 'all-gather'): 3 * SIZE}


def test_reduce_scatter_sends_what_others_keep():
  scatter = lambda x: jax.lax.psum_scatter(x, 'context', tiled=True)
  assert sent(scatter) == {('context', 'reduce-scatter'): SIZE / 2}


def test_all_to_all_sends_what_others_receive():
  exchange = lambda x: jax.lax.all_to_all(x.reshape(4, 128), ('context', 'tensor'), 0, 0).reshape(-1)
  assert sent(exchange) == {('context+tensor', 'all-to-all'): SIZE * 3 / 4}


def test_a_permutation_sends_all():
  turn = lambda x: jax.lax.ppermute(x, 'fsdp', [(0, 1), (1, 0)])
  assert sent(turn) == {('fsdp', 'collective-permute'): SIZE}


def test_in_a_loop_each_time_counts():
  def ring(x):
    return jax.lax.scan(lambda x, _: (jnp.sin(jax.lax.ppermute(x, 'context', [(0, 1), (1, 0)])), None), x, None,
                        length=9)[0]
  assert sent(ring) == {('context', 'collective-permute'): 9 * SIZE}


def test_what_leaves_a_domain_goes_over_the_network_once():
  """fsdp differs between two hosts of four devices each."""
  hosts = [0] * 4 + [1] * 4
  found, = traffic(lambda x: jax.lax.psum(x, ('fsdp', 'tensor')), domains=hosts)
  assert found.sent == 2 * SIZE * 3 / 4 and found.across == 2 * (SIZE / 2) / 2
  assert found.seconds == pytest.approx((found.sent - found.across) / 1e9 + found.across / 1e8)
  found, = traffic(lambda x: jax.lax.all_gather(x, ('fsdp', 'context'), tiled=True), out=P('tensor'), domains=hosts)
  assert found.across == SIZE
  found, = traffic(lambda x: jax.lax.psum(x, ('context', 'tensor')), domains=hosts)
  assert found.across == 0


def test_what_slices_send_each_other_is_handed_to_the_host():
  text = '''ENTRY %main (p: f32[4]) -> f32[4] {
  %p = f32[4]{0} parameter(0)
  %after = token[] after-all()
  ROOT %send = (f32[4]{0}, u32[], token[]) send(%p, %after), channel_id=3, is_host_transfer=true, frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}
}
'''
  mesh, slices = {'data': 4, 'fsdp': 2}, [0, 0, 0, 0, 1, 1, 1, 1]
  found, = collectives.by_axis(collectives.collect(Program(text), mesh, slices), link=1.0, network=1.0)
  assert (found.axes, found.kind, found.sent, found.across) == ('data', 'all-reduce', 16, 16)


GROUPS = [[0, 2], [1, 3], [4, 6], [5, 7]]


@pytest.mark.parametrize('text', [
    'replica_groups={{0,2},{1,3},{4,6},{5,7}}, dimensions={0}',
    'replica_groups=[4,2]<=[2,2,2]T(0,2,1), dimensions={0}',
    "replica_groups=mesh['a'=2,'b'=2,'c'=2] {'b'}, dimensions={0}",
    "replica_groups=mesh['a'=2,'b'=2,'c'=2], device_ids=(4,5,6,7,0,1,2,3) {'b'}, dimensions={0}",
    "replica_groups=mesh['a'=4,'b'=2], device_ids=([2,2,2]T(0,2,1)) {'b'}, dimensions={0}",
])
def test_groups_are_read_however_they_are_written(text):
  assert sorted(collectives.replica_groups(text, 8)) == GROUPS
  assert collectives.axes_of(GROUPS, {'data': 1, 'fsdp': 2, 'context': 2, 'tensor': 2}) == ('context',)


def test_an_asynchronous_collective_counts_once_and_others_each_time():
  text = '''%start (p: f32[4]) -> f32[8] {
  %p = f32[4]{0} parameter(0)
  ROOT %all-gather.1 = f32[8]{0} all-gather(%p), channel_id=3, replica_groups=[1,2]<=[2], frontend_attributes={chain_id="2"}
}
%done (p: f32[4]) -> f32[8] {
  %p = f32[4]{0} parameter(0)
  ROOT %all-gather.2 = f32[8]{0} all-gather(%p), channel_id=3, replica_groups=[1,2]<=[2], frontend_attributes={chain_id="2"}
}
ENTRY %main (p: f32[4]) -> f32[8] {
  %p = f32[4]{0} parameter(0)
  %a = f32[8]{0} fusion(%p), kind=kCustom, calls=%start
  %b = f32[8]{0} fusion(%p), kind=kCustom, calls=%done
  %c = f32[4]{0} all-reduce(%p), channel_id=1, replica_groups=[1,2]<=[2]
  ROOT %d = f32[4]{0} all-reduce(%c), channel_id=1, replica_groups=[1,2]<=[2]
}
'''
  found = collectives.by_axis(collectives.collect(Program(text), {'fsdp': 2}), link=1.0, network=1.0)
  assert {(t.axes, t.kind): t.sent for t in found} == {('fsdp', 'all-reduce'): 32, ('fsdp', 'all-gather'): 16}
