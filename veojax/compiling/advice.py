"""What to change in a config whose program does not fit the chip, with an estimate of what that saves."""
from veojax.training.transformer import TransformerRun

STATE = 4 * 3  # bytes of a parameter in float32: itself and AdamW's two moments
GIB = 2 ** 30


def remedies(config, mesh: dict[str, int], excess: float) -> tuple[str, ...]:
  """Changes of mesh, rematerialisation and averages that save memory on each chip, the likeliest to suffice first.

  Estimates are of what the change concerns alone; they do not add up exactly.
  """
  if not isinstance(config, TransformerRun):
    return ('a smaller loop.batch_size, with loop.accumulate raised as much',)
  state, kept = sizes(config, mesh)
  saves = {}
  if config.dit.remat in ('none', 'dots'):
    saves["dit.remat='attention' keeps attention's outputs only"] = kept - stored(config, mesh, 2)
  if config.dit.remat != 'full':
    saves["dit.remat='full' keeps each layer's input only"] = kept - stored(config, mesh, 1)
  saves[f'mesh.fsdp={2 * mesh["fsdp"]} halves parameters and optimizer state'] = state / 2
  saves[f'mesh.context={2 * mesh["context"]} halves what a chip holds of a row'] = kept / 2
  if len(config.loop.ema_decays) > 1:
    saves['one average of the weights, loop.ema_decays=(...,)'] = state * 4 / (STATE + 4 * len(config.loop.ema_decays))
  ordered = sorted(saves.items(), key=lambda item: (item[1] < excess, abs(item[1] - excess)))
  return tuple(f'{change}: about {saved / GIB:.1f} GiB less' for change, saved in ordered if saved > 0)


def sizes(config: TransformerRun, mesh: dict[str, int]) -> tuple[float, float]:
  """Bytes on a chip of (parameters with their averages and optimizer state, activations kept for the backward pass)."""
  dit = config.dit
  parameters = dit.depth * (4 * dit.width ** 2 + 3 * dit.width * dit.mlp_width) + 8 * dit.width ** 2
  state = parameters * (STATE + 4 * len(config.loop.ema_decays)) / (mesh['fsdp'] * mesh['tensor'])
  widths = {'full': 1, 'attention': 2, 'dots': 5 + 2 * dit.mlp_width / dit.width,
            'none': 16 + 5 * dit.mlp_width / dit.width}[dit.remat]
  return state, stored(config, mesh, widths)


def stored(config: TransformerRun, mesh: dict[str, int], widths: float) -> float:
  """Bytes on a chip of `widths` arrays of the model's width for every token of every layer."""
  rows = max(1, config.loop.batch_size // (mesh['data'] * mesh['fsdp']))
  size = 2 if config.dit.dtype == 'bfloat16' else 4
  return widths * rows * config.pack.row_tokens // mesh['context'] * config.dit.width * config.dit.depth * size
