"""The rows that are evaluated for clips: under their prompts, and as guidance wants them to lead away from.

All evaluations of a clip hold the same media tokens in the same places, at the end of their rows, and differ in

  guided     nothing: the clip under its prompt
  text       the prompt: the negative one stands in its place (Ho & Salimans 2022)
  modality   the segment of the sound: with a copy of the prompt it is a clip of its own, so picture and sound do not
             see each other (as LTX-2 leaves out the attention between them: HaCohen et al. 2026)
"""
import math
from collections.abc import Collection, Sequence

import numpy as np

from veojax import sharding
from veojax.data import packing
from veojax.data.latent_clip import LatentClip
from veojax.data.packing import PackConfig
from veojax.types import AUDIO, Tokens

ROW_STEP = 32  # rows are this many tokens or a multiple: clips of near sizes share a compilation


def pack_config(away: Collection[str], max_text: int, channels: int, media_tokens: int,
                num_levels: int = 1) -> PackConfig:
  """Rows for one clip of so many tokens of sound and picture, at `num_levels` noise levels of its own; they divide over
  the mesh in force."""
  clips, parts = 2 if 'modality' in away else 1, sharding.size('context')
  whole = lambda length, step: -(-length // step) * step
  return PackConfig(row_tokens=whole(clips * max_text + media_tokens, math.lcm(ROW_STEP, parts)),
                    text_tokens=whole(clips * max_text, parts), max_clips=clips, max_text=max_text, channels=channels,
                    groups_per_clip=4 + 2 * num_levels)


def evaluations(latents: Sequence[LatentClip], prompts: Sequence[Sequence[int]], negative: Sequence[int],
                away: Collection[str], pack: PackConfig) -> list[Tokens]:
  """Rows [B, ...] of the clips: guided, then those to lead away from, by their names above."""
  def of(name, latent, ids):
    if name != 'modality':
      return [latent._replace(text_ids=negative if name == 'text' else ids)]
    both = latent._replace(text_ids=ids)
    return [both._replace(video=None, stills=()), both._replace(audio=None)]
  def stacked(name):
    made = [_at_end(packing.pack(of(name, *clip), pack)) for clip in zip(latents, prompts, strict=True)]
    return Tokens(*(np.stack(x) for x in zip(*made)))
  return [stacked(name) for name in ('guided', *away)]


def _at_end(row: Tokens) -> Tokens:
  """The row with padding in front, then text: media tokens then stand in the same places whatever the text."""
  order = np.argsort(np.minimum(row.modality, AUDIO), kind='stable')
  per_token = ('latent', 'modality', 'segment', 'position', 'extent', 'group', 'text_index')
  return row._replace(**{name: getattr(row, name)[order] for name in per_token})
