"""`veojax convert`: a published folder, as it is downloaded, into a run; and back, the same bytes per tensor.

All headers are matched before anything is written, and a run appears when it is whole. Memory holds one parameter (all
layers of a stack) and a batch of what is to be written.
"""
import contextlib
import dataclasses
import hashlib
import itertools
import json
import math
import os
import pathlib
import re
import shutil
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from flax import nnx

from veojax import config as door
from veojax import sharding
from veojax.files import on_disk
from veojax.models import weights
from veojax.zoo import part_checkpoint, published, weight_files, weight_table
from veojax.zoo.pipelines import PUBLISHED
from veojax.zoo.published import RECORD, Part, Published

INDEX = 'model_index.json'
HEADERS = 'headers'  # of a part's safetensors files, and their index


@dataclasses.dataclass(frozen=True)
class Source:
  """Where a part lies: a folder with config.json and weights, or the makers' files {path: prefix}."""
  layout: str  # 'diffusers' or 'original'
  weights: pathlib.Path | dict[pathlib.Path, str]
  within: tuple[str, ...] = ()  # how the keys begin of a part that shares its file

  @classmethod
  def given(cls, part: Part, path: pathlib.Path) -> 'Source':
    """Of a part that is named by itself: a folder with config.json, or the makers' one file, in a folder or not."""
    if _has_any_name(part) and path.exists() and not (path / 'config.json').exists():
      return cls('original', {path: ''})
    return cls('diffusers', path)

  def name(self) -> str:
    return ', '.join(map(str, self.weights if self.layout == 'original' else [self.weights]))

  def config_text(self, part: Part, files: weight_files.WeightFiles) -> str:
    if self.layout == 'original':
      return json.dumps({'_class_name': part.class_name, **part.original.config(files)}, indent=2)
    part.read_config(self.weights / 'config.json')
    return (self.weights / 'config.json').read_text()


def convert(source, output, *, variant: str = '', parts: Mapping[str, str] | None = None) -> dict:
  """Converts the published folder `source` into the run `output`, a new folder; what published.json then holds.

  variant: 'fp16' or 'bf16', where a folder holds several precisions. parts: folders of parts that the published folder
  lacks or that are to replace its own. ValueError for a folder of another model, for missing, unexpected and misshapen
  tensors, and for files that are missing, truncated or pickles.
  """
  source, output = pathlib.Path(source), on_disk(output, 'a converted model')
  _check_new(output)
  model, components, sources = _recognise(source, dict(parts or {}))
  small = _small_files(source, components, model, parts or {})
  with _appearing(output) as folder, jax.set_mesh(sharding.make_mesh(devices=jax.devices()[:1])):
    opened, matched = {}, {}
    with contextlib.ExitStack() as stack:
      for name, part in model.parts.items():
        (folder / name).mkdir(parents=True)
        opened[name] = stack.enter_context(weight_files.opened(
            sources[name].weights, variant, sources[name].within))
        (folder / name / 'config.json').write_text(sources[name].config_text(part, opened[name]))
        config = part.read_config(folder / name / 'config.json')
        matched[name] = (sources[name].name(), opened[name], part.rules(config, sources[name].layout),
                         part.shapes(config))
        weight_table.match(*matched[name])
      if variant and not any(f'.{variant}' in path.name for files in opened.values() for path in files.paths):
        raise ValueError(f'{source} holds nothing of the variant {variant!r}; leave --variant out')
      for name in model.parts:
        part_checkpoint.write(folder / name / 'weights', weight_table.leaves(*matched[name]))
        _keep_headers(opened[name], folder / name / HEADERS)
      record = _record(source, model, components, sources, opened)
    for name, path in small.items():
      (folder / name).parent.mkdir(parents=True, exist_ok=True)
      shutil.copyfile(path, folder / name)
    record['copied'] = {name: _sha256(path) for name, path in small.items()}
    (folder / RECORD).write_text(json.dumps(record, indent=2))
  return record


def _keep_headers(files: weight_files.WeightFiles, folder: pathlib.Path):
  """What `reverse` needs to write the same files."""
  folder.mkdir()
  for path in files.paths:
    (folder / path.name).write_bytes(weight_files.read_header(path))
  if files.index is not None:
    shutil.copyfile(files.index, folder / files.index.name)


def _check_new(output: pathlib.Path):
  if output.exists() and (not output.is_dir() or any(output.iterdir())):
    raise ValueError(f'{output} holds something already; give a new folder')


@contextlib.contextmanager
def _appearing(output: pathlib.Path):
  """A folder to fill, which is `output` once that is done."""
  partial = output.with_name(f'{output.name}.partial')
  shutil.rmtree(partial, ignore_errors=True)
  partial.mkdir(parents=True)
  try:
    yield partial
    if output.exists():
      output.rmdir()
    partial.rename(output)
  finally:
    shutil.rmtree(partial, ignore_errors=True)


def _recognise(source: pathlib.Path, given: dict[str, str]) -> tuple[Published, dict, dict[str, Source]]:
  """(what the folder is, its components by model_index.json, where each part lies)."""
  if source.is_file():
    model, components = _of_one_file(source, given), {}
    sources = {name: Source('original', {source: ''}, part.original.within) if _shares_a_file(part) else
               Source('diffusers', source / name) for name, part in model.parts.items()}
  elif not source.is_dir():
    raise ValueError(f'{source} is no folder; give the folder of a published model, as it is downloaded in diffusers\' '
                     'layout')
  elif (source / INDEX).exists():
    components = published.read_json(source / INDEX)
    named = components.get('_class_name')
    fitting = [m for m in PUBLISHED if named in m.class_names and set(given) <= {*m.parts, *m.small}]
    if not fitting:
      known = sorted({name for m in PUBLISHED for name in m.class_names})
      raise ValueError(f'{source} is a {named}{"".join(f" with --{n}" for n in given)}, which veojax cannot convert; '
                       f'{door.nearest(str(named), known)}')
    # Several pipelines may stand on the same folder: the one whose parts are all there.
    present = set(given) | {name for name in components if (source / name).is_dir()}
    model = max(fitting, key=lambda m: len(set(m.parts) & present) - len(set(m.parts) - present))
    sources = {name: Source('diffusers', source / name) for name in model.parts}
  else:
    components = {}
    model = next((m for m in PUBLISHED if _has_original(source, m)), None)
    if model is None:
      weight_files.refuse_pickle(source)
      raise ValueError(f'{source} holds no {INDEX}, nor the files of {_originals()}; give the folder of a published '
                       'model, as it is downloaded in diffusers\' layout')
    sources = {name: Source('original', {source / file: prefix for file, prefix in part.original.files.items()})
               if part.original else Source('diffusers', source / name) for name, part in model.parts.items()}
  sources |= {name: Source.given(part, pathlib.Path(given[name])) for name, part in model.parts.items()
              if name in given}
  for name in model.parts:
    path = sources[name].weights
    if sources[name].layout == 'diffusers' and not path.is_dir():
      if path.is_file():
        weight_files.refuse_pickle(path)
      raise ValueError(f'{path} is no folder, and {model.name} needs its {name}; give its folder: --{name} FOLDER')
  return model, components, sources


def _has_any_name(part: Part) -> bool:
  """Whether the makers' layout of it is one file, whose name does not say what it is."""
  return part.original is not None and not part.original.files and not part.original.within


def _shares_a_file(part: Part) -> bool:
  return part.original is not None and bool(part.original.within)


def _of_one_file(source: pathlib.Path, given: dict[str, str]) -> Published:
  """The pipeline whose parts are in the makers' one file, but for those that are given. ValueError for another file."""
  fitting = [m for m in PUBLISHED if any(map(_shares_a_file, m.parts.values())) and set(given) <= {*m.parts, *m.small}]
  if not fitting:
    raise ValueError(f'{source} with {" ".join(f"--{name}" for name in given)} is nothing that veojax knows; give the '
                     'folder of a published model, as it is downloaded in diffusers\' layout')
  with weight_files.opened(source) as files:
    keys = files.keys()
  unknown = {m.name: [key for key in keys if not key.startswith(_prefixes(m)) and not re.fullmatch(m.beside, key)]
             for m in fitting}
  lacking = lambda m: [name for name, part in m.parts.items() if not _shares_a_file(part) and name not in given]
  model = min(fitting, key=lambda m: (len(unknown[m.name]), len(lacking(m))))
  if found := unknown[model.name]:
    raise ValueError(f'{source} holds {", ".join(found[:weight_table.SHOWN])}, and {model.name} takes one file of keys '
                     f'that begin with {", ".join(_prefixes(model))}; of any other model give the folder in diffusers\' '
                     'layout')
  return model


def _prefixes(model: Published) -> tuple[str, ...]:
  """How the keys of its parts begin in one file."""
  return tuple(prefix for part in model.parts.values() if _shares_a_file(part) for prefix in part.original.within)


def _has_original(source, model: Published) -> bool:
  originals = [part.original for part in model.parts.values() if part.original and part.original.files]
  return bool(originals) and all((source / file).exists() for original in originals for file in original.files)


def _originals() -> str:
  files = {m.name: [f for part in m.parts.values() if part.original for f in part.original.files] for m in PUBLISHED}
  return ' or '.join(f'{name} ({", ".join(found)})' for name, found in files.items() if found)


def _small_files(source: pathlib.Path, components: dict, model: Published, given) -> dict[str, pathlib.Path]:
  """What is taken along as it is, by its name in the run: the index, the licence, and the folders that hold no network
  (tokenizer, scheduler)."""
  found = {p.name: p for p in (sorted(source.iterdir()) if source.is_dir() else ())
           if p.is_file() and (p.name == INDEX or p.name.startswith('LICENSE'))}
  named = {name: value[-1] for name, value in components.items() if isinstance(value, list) and value[0] is not None}
  for name in dict.fromkeys([*named, *model.small]):
    in_code = source.is_file() and name not in given and any(path.startswith(f'{name}/') for path in model.in_code)
    if name in model.parts or name in model.left_out or in_code:
      continue
    folder = pathlib.Path(given.get(name, source / name))
    files = sorted(p for p in folder.rglob('*') if p.is_file() and '.git' not in p.relative_to(folder).parts)
    if name in model.small:  # a network may lie beside what is meant
      files = [p for p in files if not set(p.suffixes) & set(weight_files.WEIGHTS)]
    if not files:
      raise ValueError(f'{folder} holds nothing, and {model.name} needs its {name}; give its folder: --{name} FOLDER')
    if any(p.suffix in weight_files.WEIGHTS for p in files):
      raise ValueError(f'{source} has a {name} ({named[name]}), which {model.name} as veojax knows it has not; give '
                       f'the folder of a {model.name} with {", ".join(model.parts)}')
    found |= {f'{name}/{p.relative_to(folder)}': p for p in files}
  return found


def _record(source, model: Published, components, sources, opened) -> dict:
  """published.json: what the run is and from where."""
  parts = {name: {'class_name': model.parts[name].class_name, 'layout': sources[name].layout,
                  'files': {path.name: _sha256(path) for path in files.paths}} for name, files in opened.items()}
  return {'model': model.name, 'class_name': components.get('_class_name', model.class_names[0]),
          'licence': model.licence, 'source': os.fspath(source), 'parts': parts}


def _sha256(path: pathlib.Path) -> str:
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def reverse(run, output):
  """Writes a run back as it was published: the same files, with the same tensors, and config.json as it was; without
  the components that the pipeline does not need, and the tensors that lay beside those of parts in one file."""
  run, output = pathlib.Path(run), on_disk(output, 'a published model')
  _check_new(output)
  record, model = open_record(run)
  with _appearing(output) as folder:
    backs = []
    for name, part in model.parts.items():
      where, known = published.part_folder(run, record, name), record['parts'][name]
      backs.append(_Back(where, folder if known['layout'] == 'original' else folder / name, part, known))
      if known['layout'] != 'original':
        (folder / name).mkdir()
        shutil.copyfile(where / 'config.json', folder / name / 'config.json')
    _write_back(backs)
    for path in record['copied']:
      (folder / path).parent.mkdir(parents=True, exist_ok=True)
      shutil.copyfile(run / path, folder / path)
    if INDEX in record['copied']:
      _leave_out(model.left_out, folder / INDEX)


def _leave_out(names, index: pathlib.Path):
  """Makes components absent, as diffusers writes it; an index that has none of them stays as it is."""
  components = published.read_json(index)
  left = components | {name: [None, None] for name in names if name in components}
  if left != components:
    index.write_text(json.dumps(left, indent=2) + '\n')


class _Back:
  """What one part gives to the files that it came from."""

  def __init__(self, where: pathlib.Path, output: pathlib.Path, part: Part, known: dict):
    self.where, self.output = where, output
    config = part.read_config(where / 'config.json')
    self.found = part_checkpoint.stored(where / 'weights')
    prefixes = part.original.files if known['layout'] == 'original' else {}
    self.headers = {path.name: path.read_bytes() for path in sorted((where / HEADERS).glob('*.safetensors'))}
    self.places = {prefixes.get(name, '') + key: (name, key) for name, header in self.headers.items()
                   for key in json.loads(header)}
    self.entries = weight_table.entries(part.rules(config, known['layout']),
                                        weights.replace(part.shapes(config), self.found), list(self.places))
    self.places = {key: place for key, place in self.places.items() if key in self.entries}

  def tensors(self, name: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    """(dtype, shape) of what it has in a file, by the keys there."""
    return {stored: (_dtype(self.entries[key], self.found), self.entries[key].source_shape(self.found))
            for key, (file, stored) in self.places.items() if file == name}

  def fill(self, blanks: dict[pathlib.Path, weight_files.Blank]):
    """Reads the parameters, some at a time, and writes them to their files."""
    fills = {}
    for key in self.places:
      for path in dict.fromkeys(path for path, _ in self.entries[key].places):
        fills.setdefault(path, []).append(key)
    for path, leaf in part_checkpoint.each(self.where / 'weights', fills):
      leaf = np.asarray(leaf)
      for key in fills[path]:
        (name, stored), entry = self.places[key], self.entries[key]
        for place, offset in zip(entry.places, _offsets(entry, self.found)):
          if place[0] == path:
            blanks[self.output / name].write(stored, offset, entry.part(place, leaf))
    for path in (self.where / HEADERS).glob('*.json'):
      index = published.read_json(path)
      kept = {key: file for key, file in index['weight_map'].items() if key in self.places}
      text = path.read_text() if kept == index['weight_map'] else json.dumps({**index, 'weight_map': kept}, indent=2)
      (self.output / path.name).write_text(text)


def _write_back(backs: Sequence[_Back]):
  """The files of the headers that they had; several parts may share one."""
  headers, tensors = {}, {}
  for back in backs:
    for name, header in back.headers.items():
      headers[back.output / name] = header
      tensors.setdefault(back.output / name, {}).update(back.tensors(name))
  blanks = {path: weight_files.Blank(path, header, tensors[path]) for path, header in headers.items()}
  for back in backs:
    back.fill(blanks)
  for blank in blanks.values():
    blank.close()


def _dtype(entry: weight_table.Entry, found) -> str:
  dtype = found[entry.places[0][0]].dtype
  return next(name for name, kind in weight_files.DTYPES.items() if dtype == kind)


def _offsets(entry: weight_table.Entry, found) -> list[int]:
  """Where the part of each place begins in the tensor, in bytes."""
  sizes = [math.prod(shape) * found[entry.places[0][0]].dtype.itemsize for shape in entry.part_shapes(found)]
  return [0, *itertools.accumulate(sizes)]


def derive(run: published.Run, output: pathlib.Path, modules: Mapping[str, nnx.Module]):
  """Makes `output` a run like `run` with other modules for these parts; it names the folders of the other parts and
  does not copy them."""
  record = json.loads(json.dumps(run.record))
  for other, part in record['parts'].items():
    part['folder'] = os.path.abspath(published.part_folder(run.folder, run.record, other))
  record['fine-tuned from'] = os.path.abspath(run.folder)
  for name, module in modules.items():
    base, record['parts'][name]['folder'] = pathlib.Path(record['parts'][name]['folder']), name
    shutil.rmtree(output / name, ignore_errors=True)
    (output / name).mkdir(parents=True)
    shutil.copyfile(base / 'config.json', output / name / 'config.json')
    shutil.copytree(base / HEADERS, output / name / HEADERS)
    part_checkpoint.write(output / name / 'weights', weights.names(module).items())
  for path in record['copied']:
    (output / path).parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(run.folder / path, output / path)
  (output / RECORD).write_text(json.dumps(record, indent=2))


def open_record(run) -> tuple[dict, Published]:
  """What a run's published.json holds, and the pipeline that it is of."""
  path = pathlib.Path(run) / RECORD
  if not path.exists():
    raise ValueError(f'{run} is no converted model (no {RECORD} in it); give the --output of `veojax convert`')
  record = published.read_json(path)
  named = {m.name: m for m in PUBLISHED}
  if record.get('model') not in named:
    raise ValueError(f'{path} names the model {record.get("model")!r}; {door.nearest(str(record.get("model")), named)}')
  return record, named[record['model']]
