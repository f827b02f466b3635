"""veojax: video with sound from text, in JAX.

    import veojax
    model = veojax.load('runs/mine')
    clip = model.generate('a red ball bounces twice', num_frames=33, seed=0)
    clip.save('clip.mp4')

Nothing heavy is imported until it is used.
"""
import importlib

__version__ = '0.1.0'

_LAZY = {'load': 'veojax.generation.model', 'Model': 'veojax.generation.model', 'read': 'veojax.generation.export',
         'Sample': 'veojax.generation.export', 'Clip': 'veojax.types', 'train': 'veojax.training.run',
         'prepare': 'veojax.data.prepare', 'evaluate': 'veojax.evaluation.evaluate', 'sweep': 'veojax.evaluation.sweep',
         'Report': 'veojax.evaluation.page'}
__all__ = sorted(_LAZY)


def __getattr__(name):
  if name in _LAZY:
    return getattr(importlib.import_module(_LAZY[name]), name)
  raise AttributeError(f'module veojax has no attribute {name!r}; it has {", ".join(__all__)}')


def __dir__():
  return __all__
