"""The FLOPs that a transformer's mathematics needs, by which a machine's share of its peak (MFU) is counted.

Forward, for a row of L tokens: 2 · N · L for the N parameters of its blocks' matrices, and 4 · L² · D a layer for
attention over the whole row, as if one clip filled it. A training step is three times that (Kaplan et al. 2020,
section 2.1, with full attention). Left out, as in published figures: text encoder, modulation, what enters and leaves
the stack, and all that is computed twice.
"""
from veojax.models.dit import DiTConfig

TRAINING = 3  # the backward pass multiplies by each operand's other, twice


def block_parameters(dit: DiTConfig) -> int:
  """Of one layer's matrices: q, k, v, out, and the three of SwiGLU."""
  return 4 * dit.width ** 2 + 3 * dit.width * dit.mlp_width


def forward(dit: DiTConfig, tokens: int) -> dict[str, float]:
  """Of one row: {'matrix': ..., 'attention': ...}."""
  return {'matrix': 2.0 * dit.depth * block_parameters(dit) * tokens,
          'attention': 4.0 * dit.depth * tokens ** 2 * dit.width}
