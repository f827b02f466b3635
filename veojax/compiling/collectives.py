"""What a compiled program communicates: bytes that each device sends, by kind of collective and by axes of the mesh.

Sent bytes are those of ring algorithms over n devices (Thakur et al. 2005): an all-gather of a result of size s sends
s (n - 1) / n, a reduce-scatter of an operand of size s as much, an all-reduce twice that, an all-to-all s (n - 1) / n,
a permutation s.
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


def collect(program: Program, mesh: dict[str, int]) -> list[Collective]:
  """All collectives of a program over a mesh {axis: size}, whose devices it numbers in row-major order."""
  found = {}
  for item in program.executed():
    kind = item.instruction.opcode.removesuffix('-start')
    if kind in KINDS:
      # An asynchronous collective is written again in each fusion that carries a part of it, as one chain.
      chain = item.instruction.attribute(r'chain_id="(\d+)"')
      key = item.instruction.attribute(r'channel_id=(\d+)') + '/' + chain if chain else len(found)
      found.setdefault(key, _collective(item, kind, mesh))
  return list(found.values())


def by_axis(found: list[Collective]) -> dict[tuple[str, str], float]:
  """{(axes joined by '+', kind): bytes sent in one run}, the largest first."""
  total = {}
  for c in found:
    key = '+'.join(c.axes) or 'none', c.kind
    total[key] = total.get(key, 0.0) + c.times * c.sent
  return dict(sorted(total.items(), key=lambda item: -item[1]))


def _collective(item: Executed, kind: str, mesh: dict[str, int]) -> Collective:
  size = sum(programs.num_bytes(shape) for shape in item.operands)
  if kind == 'collective-permute':
    pairs = _pairs(item.instruction.attribute(r'source_target_pairs=\{(.*?)\}\}') + '}')
    moving = [pair for pair in pairs if pair[0] != pair[1]]
    return Collective(kind, axes_of(moving, mesh), item.times, float(size) if moving else 0.0)
  groups = replica_groups(item.instruction.rest, math.prod(mesh.values()))
  n = len(groups[0])
  if kind == 'all-reduce' and 'all-reduce-scatter' in item.caller.name + item.caller.attribute(r'calls=%?([\w.\-]+)'):
    kind = 'reduce-scatter'  # so the TPU's compiler writes it: an all-reduce of which a fusion keeps a slice
  factor = {'all-gather': n - 1, 'all-reduce': 2 * (n - 1) / n}.get(kind, (n - 1) / n)
  return Collective(kind, axes_of(groups, mesh), item.times, factor * size)


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
