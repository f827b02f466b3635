"""What a compiled program communicates: bytes that each device sends, by kind of collective and by axes of the mesh.

Sent bytes are those of ring algorithms over n devices (Thakur et al. 2005): an all-gather of a result of size s sends
s (n - 1) / n, a reduce-scatter of an operand of size s as much, an all-reduce twice that, an all-to-all s (n - 1) / n,
a permutation s.

Where a group's devices are of several domains (slices of TPUs, hosts of GPUs), which a slower network joins, what
crosses is counted too: that of an algorithm in two levels, which takes each byte across once and shares the crossing
out among a domain's devices of the group.
"""
import dataclasses
import math
import re

import numpy as np

from veojax.compiling import program as programs
from veojax.compiling.program import Executed, Program

KINDS = ('all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all', 'ragged-all-to-all', 'collective-permute',
         'collective-broadcast')


@dataclasses.dataclass(frozen=True)
class Collective:
  kind: str
  axes: tuple[str, ...]  # along which the devices of a group differ
  times: int             # executions in one run
  sent: float            # bytes that a device sends in one execution
  across: float = 0.0    # of them, bytes that leave its domain


def collect(program: Program, mesh: dict[str, int], domains: list[int] | None = None) -> list[Collective]:
  """All collectives of a program over a mesh {axis: size}, whose devices it numbers in row-major order; domains: that
  of each device."""
  found = {}
  domains = domains or [0] * math.prod(mesh.values())
  for item in program.executed():
    kind = item.instruction.opcode.removesuffix('-start')
    if kind in KINDS:
      # An asynchronous collective is written again in each fusion that carries a part of it, as one chain.
      chain = item.instruction.attribute(r'chain_id="(\d+)"')
      key = item.instruction.attribute(r'channel_id=(\d+)') + '/' + chain if chain else len(found)
      found.setdefault(key, _collective(item, kind, mesh, domains))
    elif transfer := item.instruction.attribute(r'_xla_megascale_transfer_type="(\w+)"') if kind == 'send' else '':
      found[len(found)] = _between_slices(item, transfer.lower().replace('_', '-'), mesh, domains)
  return list(found.values())


@dataclasses.dataclass(frozen=True)
class Traffic:
  """All collectives of one kind along the same axes in one run."""
  axes: str         # joined by '+'
  kind: str
  sent: float       # bytes that a device sends
  across: float     # of them, bytes that leave its domain
  seconds: float


def by_axis(found: list[Collective], link: float, network: float) -> list[Traffic]:
  """The longest first; seconds at `link` bytes a second, and at `network` for what leaves a domain."""
  total = {}
  for c in found:
    sent, across = total.get(('+'.join(c.axes) or 'none', c.kind), (0.0, 0.0))
    total['+'.join(c.axes) or 'none', c.kind] = sent + c.times * c.sent, across + c.times * c.across
  traffic = [Traffic(*key, sent, across, (sent - across) / link + across / network)
             for key, (sent, across) in total.items()]
  return sorted(traffic, key=lambda t: -t.seconds)


def _collective(item: Executed, kind: str, mesh: dict[str, int], domains: list[int]) -> Collective:
  size = sum(programs.num_bytes(shape) for shape in item.operands)
  if kind == 'collective-permute':
    pairs = _pairs(item.instruction.attribute(r'source_target_pairs=\{(.*?)\}\}') + '}')
    moving = [pair for pair in pairs if pair[0] != pair[1]]
    crossing = any(domains[a] != domains[b] for a, b in moving)
    return Collective(kind, axes_of(moving, mesh), item.times, float(size) if moving else 0.0, size * float(crossing))
  groups = replica_groups(item.instruction.rest, math.prod(mesh.values()))
  n = len(groups[0])
  if kind == 'all-reduce' and 'all-reduce-scatter' in item.caller.name + item.caller.attribute(r'calls=%?([\w.\-]+)'):
    kind = 'reduce-scatter'  # so the TPU's compiler writes it: an all-reduce of which a fusion keeps a slice
  d = len({domains[device] for device in groups[0]})
  shared = 1 if kind in ('all-gather', 'all-to-all', 'ragged-all-to-all') else d / n  # of all others it is a part
  return Collective(kind, axes_of(groups, mesh), item.times, _factor(kind, n) * size, _factor(kind, d) * size * shared)


def _between_slices(item: Executed, kind: str, mesh: dict[str, int], domains: list[int]) -> Collective:
  """What the TPU's compiler hands to the host, for the other slices: each chip's part, of which every slice has one."""
  d = len(set(domains))
  sent = _factor(kind, d) * sum(programs.num_bytes(shape) for shape in item.operands)
  by_place = np.reshape(domains, list(mesh.values()))
  axes = tuple(axis for i, axis in enumerate(mesh) if (by_place != by_place.take([0], i)).any())
  return Collective(kind, axes, item.times, sent, sent)


def _factor(kind: str, n: int) -> float:
  """Operands of one size that each of n devices sends."""
  return {'all-gather': n - 1, 'all-reduce': 2 * (n - 1) / n}.get(kind, (n - 1) / n)


def _pairs(text: str) -> list[list[int]]:
  return [[int(n) for n in group.split(',')] for group in re.findall(r'\{([0-9,]+)\}', text)]


def replica_groups(text: str, num_devices: int) -> list[list[int]]:
  """Groups of device numbers, from any of the three ways in which they are written:
  {{0,1},{2,3}}, [2,2]<=[4] or [2,2]<=[2,2]T(1,0), and mesh['a'=2,'b'=2] {'b'}.
  """
  if listed := re.search(r'replica_groups=\{(\{[0-9,{}]*\})\}', text):
    return _pairs(listed.group(1))
  if iota := re.search(r'replica_groups=\[([0-9,]+)\]<=\[([0-9,]+)\](?:T\(([0-9,]+)\))?', text):
    shape, source, order = ([int(n) for n in part.split(',')] if part else None for part in iota.groups())
    devices = np.arange(num_devices).reshape(source)
    return devices.transpose(order or range(len(source))).reshape(shape).tolist()
  if named := re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((.*?)\))? \{([^}]*)\}", text):
    axes, order, along = named.groups()
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", axes)}
    along = [list(sizes).index(name) for name in re.findall(r"'([^']+)'", along)]
    devices = np.moveaxis(_order(order, num_devices).reshape(list(sizes.values())), along, range(-len(along), 0))
    return devices.reshape(-1, math.prod(list(sizes.values())[i] for i in along)).tolist()
  assert not re.search(r'replica_groups=(?!\{\})', text), f'groups written in a way not known here: {text[:300]}'
  return [list(range(num_devices))]


def _order(text: str | None, num_devices: int) -> np.ndarray:
  """Device numbers as a named mesh lists them: '0,2,1,3' or '[2,2]T(1,0)'; in order where nothing is said."""
  if not text:
    return np.arange(num_devices)
  if text[0] != '[':
    return np.array([int(n) for n in text.split(',')])
  shape, order = re.fullmatch(r'\[([0-9,]+)\](?:T\(([0-9,]+)\)?)?', text).groups()
  shape = [int(n) for n in shape.split(',')]
  return np.arange(num_devices).reshape(shape).transpose([int(n) for n in order.split(',')] if order else None).ravel()


def axes_of(groups: list[list[int]], mesh: dict[str, int]) -> tuple[str, ...]:
  """Axes of the mesh along which devices of one group differ."""
  differs = np.zeros(len(mesh), bool)
  for group in groups:
    at = np.stack(np.unravel_index(group, list(mesh.values())), -1)
    differs |= (at != at[:1]).any(0)
  return tuple(axis for axis, different in zip(mesh, differs) if different)
