"""A compiled module's text (`compiled.as_text()`), read: computations, instructions, and how often each is executed.

The text is that of one device's program after all optimisation, in XLA's HLO syntax. A loop's body is executed as often
as its trip count says; libtpu writes none, so it is the constant that the loop's condition compares with.
"""
import dataclasses
import functools
import math
import re
from collections.abc import Iterator

BITS = {'pred': 8, 'bf16': 16, 'f16': 16, 'f32': 32, 'f64': 64, 'token': 0, 'c64': 64, 'c128': 128}

HEADER = re.compile(r'^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$')
INSTRUCTION = re.compile(r'^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$')
ARRAY = re.compile(r'\b([a-z]+[0-9]*[a-z0-9]*)\[([0-9,]*)\]')
CALLED = re.compile(r'\b(?:calls|to_apply|body|true_computation|false_computation)=%?([\w.\-]+)')
EXECUTES = ('fusion', 'call', 'while', 'async-start', 'conditional')  # others apply theirs to scalars


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line. `rest` is what follows the opening parenthesis: operands, then attributes."""
  name: str
  shape: str
  opcode: str
  rest: str

  @functools.cached_property
  def operands(self) -> list[str]:
    return re.findall(r'%([\w.\-]+)', self.rest[:_closing(self.rest)])

  @functools.cached_property
  def called(self) -> list[str]:
    """Computations that it executes."""
    branches = re.search(r'branch_computations=\{([^}]*)\}', self.rest)
    return CALLED.findall(self.rest) + (re.findall(r'%([\w.\-]+)', branches.group(1)) if branches else [])

  @property
  def op_name(self) -> str:
    """Where it comes from: the path of JAX's names."""
    return self.attribute(r'op_name="([^"]*)"')

  def attribute(self, pattern: str) -> str:
    """The pattern's first group, or an empty text."""
    found = re.search(pattern, self.rest)
    return found.group(1) if found else ''


def _closing(text: str) -> int:
  """Where the parenthesis that was opened before `text` closes."""
  depth = 1
  for i, letter in enumerate(text):
    depth += (letter == '(') - (letter == ')')
    if not depth:
      return i
  return len(text)


def arrays(shape: str) -> list[tuple[str, tuple[int, ...]]]:
  """[(dtype, dims)] of an array's or a tuple's shape."""
  return [(dtype, tuple(int(n) for n in dims.split(',') if n)) for dtype, dims in ARRAY.findall(shape)]


def dims(shape: str) -> tuple[int, ...]:
  """Dims of an array."""
  return arrays(shape)[0][1]


def num_bytes(shape: str) -> int:
  """Bytes of all arrays in a shape, without padding."""
  return sum(math.prod(sizes) * _bits(dtype) // 8 for dtype, sizes in arrays(shape))


def _bits(dtype: str) -> int:
  return BITS[dtype] if dtype in BITS else int(re.search(r'\d+', dtype).group())


@dataclasses.dataclass(frozen=True)
class Executed:
  """An instruction, its operands' shapes, and how many times one run of the program executes it.

  caller: the instruction of which it is a part, or itself; a fusion's parts share one.
  """
  instruction: Instruction
  operands: tuple[str, ...]
  times: int
  caller: Instruction


class Program:
  """The computations of a module by name, `entry` among them."""

  def __init__(self, text: str):
    self.computations: dict[str, dict[str, Instruction]] = {}
    self.entry = self.current = ''
    for line in text.splitlines():
      self._read(line)
    if not self.entry:
      raise ValueError(f'no ENTRY in a module of {len(text)} characters; give the text of a compiled module')

  def _read(self, line):
    # A kernel's metadata may hold line breaks, so a computation ends where the next begins, not at a brace.
    if (header := HEADER.match(line)) and ' -> ' in line:
      self.current = header.group(2)
      self.computations[self.current] = {}
      self.entry = self.current if header.group(1) else self.entry
    elif self.current and (found := INSTRUCTION.match(line)):
      self.computations[self.current][found.group(1)] = Instruction(*found.groups())

  def executed(self) -> Iterator[Executed]:
    """Every instruction that a run executes, those inside of fusions and loops too."""
    yield from self._walk(self.entry, 1, None)

  def _walk(self, name: str, times: int, caller: Instruction | None) -> Iterator[Executed]:
    computation = self.computations[name]
    for instruction in computation.values():
      operands = tuple(computation[o].shape for o in instruction.operands if o in computation)
      yield Executed(instruction, operands, times, caller or instruction)
      if instruction.opcode in EXECUTES:
        inside = times * self.trip_count(instruction) if instruction.opcode == 'while' else times
        part_of = (caller or instruction) if instruction.opcode in ('fusion', 'async-start') else None
        for called in instruction.called:
          yield from self._walk(called, inside, part_of)

  def trip_count(self, loop: Instruction) -> int:
    """How often a `while` runs its body; 1 where the text does not say."""
    if known := loop.attribute(r'known_trip_count":\{"n":"(\d+)"'):
      return int(known)
    bounds = list(self._constants(loop.attribute(r'condition=%?([\w.\-]+)')))
    return max(bounds, default=1)

  def _constants(self, name: str) -> Iterator[int]:
    for instruction in self.computations.get(name, {}).values():
      if instruction.opcode == 'constant' and instruction.shape.startswith(('s32[]', 'u32[]', 's64[]')):
        yield int(instruction.rest.split(')')[0])
      for called in instruction.called:
        yield from self._constants(called)
