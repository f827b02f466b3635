"""What a published pipeline is, to `veojax convert`, `generate` and `info`: its parts, their rules, its conventions.

A published folder, as it is downloaded, has a model_index.json that names the pipeline's class and its components. A
component is a part (a network, in a folder with config.json and safetensors), or a folder of small files (tokenizer,
scheduler) that are taken along as they are. The converted model, a run, mirrors it: RUN/PART/config.json as it was,
RUN/PART/weights an Orbax checkpoint in our names and layouts, the small files, and published.json, which says what it
is, from where, and which tensors stood in which file.

One `Published` describes one pipeline. Its `pipeline` is a class that a `Run` (the loaded parts) makes into something
that samples; see `Pipeline`.
"""
import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from flax import nnx

from veojax import config as door
from veojax import sharding
from veojax.models import weights
from veojax.zoo import part_checkpoint
from veojax.zoo.weight_files import WeightFiles
from veojax.zoo.weight_table import Rule

RECORD = 'published.json'


@dataclasses.dataclass(frozen=True)
class Original:
  """A part as its makers published it: files in the root of the folder, each with a prefix for its keys (none where the
  one file has any name, and is given by itself), the rules of their names, and the fields of config.json, which their
  code holds or the files' headers tell. within: how the keys begin of a part that shares its file with others."""
  files: Mapping[str, str]
  table: Callable[[Any], Sequence[Rule]]
  config: Callable[[WeightFiles], Mapping[str, Any]]
  within: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Part:
  """One network.

  class_name: as config.json has it, in `_class_name` (diffusers) or `architectures` (transformers). config: the frozen
  dataclass of the fields of config.json that matter, under their names there; other fields are an error, but for those
  that are ignored, because they do not change what is computed. on_mesh: whether it is laid out over the mesh;
  a codec is not, so that it can be called anywhere. make(config, rngs) is the module, table(config) the
  rules of its weights.
  """
  class_name: str
  config: type
  make: Callable[[Any, nnx.Rngs], nnx.Module]
  table: Callable[[Any], Sequence[Rule]]
  ignored: frozenset[str] = frozenset()
  on_mesh: bool = True
  original: Original | None = None

  def read_config(self, path: pathlib.Path):
    """The config in a config.json. ValueError where it is not there or that of another class."""
    tree = read_json(path)
    named = tree.get('_class_name') or (tree.get('architectures') or [''])[0]
    if named != self.class_name:
      raise ValueError(f'{path} is that of a {named or "model without a class"}, not of a {self.class_name}; '
                       'give the folder of the model that is meant')
    return self.build(tree, str(path))

  def build(self, tree: Mapping[str, Any], path: str):
    fields = {k: v for k, v in tree.items() if not k.startswith('_') and k not in self.ignored}
    return door.build(self.config, fields, path)

  def rules(self, config, layout: str) -> Sequence[Rule]:
    return self.original.table(config) if layout == 'original' else self.table(config)

  def shapes(self, config):
    """The module as shapes, laid out for the mesh in force."""
    return weights.abstract(lambda rngs: self.make(config, rngs))


@dataclasses.dataclass(frozen=True)
class Published:
  """One pipeline.

  class_names: of model_index.json, those whose weights it takes. parts: by their folders; one that the index does not
  name comes from a folder of its own (`veojax convert --PART FOLDER`). small: folders of small files that it needs
  (tokenizer). left_out: components that are not needed, each with the reason. tasks: as people name them ('text to
  video'). beside: keys, as a regex, that the makers' one file has beside those of parts; in_code: of `small`, the
  JSON files that are not beside it, with what they would hold.
  """
  name: str
  class_names: tuple[str, ...]
  parts: Mapping[str, Part]
  pipeline: Callable[['Run'], 'Pipeline']
  tasks: tuple[str, ...]
  licence: str
  small: tuple[str, ...] = ()
  left_out: Mapping[str, str] = dataclasses.field(default_factory=dict)
  beside: str = ''
  in_code: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)


@runtime_checkable
class Pipeline(Protocol):
  """What a pipeline offers to `generation.published_model`, which makes clips of it.

  settings: a frozen dataclass of everything `generate` takes beside prompt and seed, with the published defaults; its
  fields num_frames, height, width, fps, num_inference_steps, guidance_scale, negative_prompt bear these names where
  there are such; its __post_init__ refuses what cannot be. given: what of a clip it takes, by name ('image'), and
  whether it must. takes_prompt: whether a text is asked for. noise_shape: of one clip. Calling it gives uint8[B, T, H,
  W, 3], one clip for each prompt, made from that noise; draw(use, shape) is [B, *shape] of more, use being the number
  of what it is for, from 2^20 on. given pictures are uint8[H, W, 3]. sizes: lines for `info`.
  """
  settings: Any
  given: Mapping[str, bool]
  takes_prompt: bool

  def noise_shape(self, settings) -> tuple[int, ...]: ...
  def __call__(self, prompts: Sequence[str], noise: jax.Array, settings, draw: Callable, **given: np.ndarray
               ) -> np.ndarray: ...
  def sizes(self) -> dict[str, str]: ...


@dataclasses.dataclass(frozen=True)
class Run:
  """A converted model: of every part its config and its module, which is loaded when it is first asked for. `record` is
  what published.json holds."""
  folder: pathlib.Path
  published: Published
  record: dict
  configs: dict[str, Any]
  parts: Mapping[str, nnx.Module]

  def json(self, name: str) -> dict:
    """A small file that was taken along, or that the makers' one file stands without: 'scheduler/scheduler_config.json'."""
    in_code = self.published.in_code
    return dict(in_code[name]) if name in in_code and name not in self.record['copied'] else read_json(self.folder / name)


class Parts(Mapping):
  """Modules by name, read when they are asked for: over the mesh in force, or else over all devices; again where
  another mesh is in force."""

  def __init__(self, folder: pathlib.Path, published: Published, record: dict, configs: dict[str, Any]):
    self._read, self._loaded = functools.partial(_read_part, folder, published, record, configs), {}
    self._names = list(published.parts)

  def __getitem__(self, name: str) -> nnx.Module:
    mesh = jax.sharding.get_mesh()
    if name not in self._loaded or self._loaded[name][0] != mesh:
      self._loaded.pop(name, None)  # it goes before the other comes
      self._loaded[name] = mesh, self._read(name)
    return self._loaded[name][1]

  def __iter__(self):
    return iter(self._names)

  def __len__(self) -> int:
    return len(self._names)


def _read_part(folder, published: Published, record: dict, configs, name: str) -> nnx.Module:
  part = published.parts[name]
  with sharding.default_mesh() if part.on_mesh else sharding.no_mesh():
    return part_checkpoint.read(part_folder(folder, record, name) / 'weights', part.shapes(configs[name]), part.on_mesh)


def read_json(path: pathlib.Path) -> dict:
  try:
    tree = json.loads(path.read_text())
  except FileNotFoundError:
    raise ValueError(f'{path} is not there; give a published folder as it is downloaded, whole') from None
  except (json.JSONDecodeError, UnicodeDecodeError, OSError) as error:
    raise ValueError(f'{path} cannot be read ({error}); copy it again') from None
  if not isinstance(tree, dict):
    raise ValueError(f'{path} holds no configuration; copy it again')
  return tree


def part_folder(folder: pathlib.Path, record: dict, name: str) -> pathlib.Path:
  """Of one part of a run: its own, or that of the run it was fine-tuned from."""
  return folder / record['parts'][name].get('folder', name)


def load(folder, published: Published, record: dict) -> Run:
  """A run; ValueError where a part's config.json is not what it should be."""
  folder = pathlib.Path(folder)
  configs = {name: part.read_config(part_folder(folder, record, name) / 'config.json')
             for name, part in published.parts.items()}
  return Run(folder, published, record, configs, Parts(folder, published, record, configs))
