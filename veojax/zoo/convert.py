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
import shutil
from collections.abc import Mapping

import jax
import numpy as np

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

  @classmethod
  def given(cls, part: Part, path: pathlib.Path) -> 'Source':
    """Of a part that is named by itself: a folder with config.json, or the makers' one file, in a folder or not."""
    if part.original and not part.original.files and path.exists() and not (path / 'config.json').exists():
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
        opened[name] = stack.enter_context(weight_files.opened(sources[name].weights, variant))
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
    weight_files.refuse_pickle(source)
  if not source.is_dir():
    raise ValueError(f'{source} is no folder; give the folder of a published model, as it is downloaded')
  if (source / INDEX).exists():
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
                       'model, as it is downloaded')
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


def _has_original(source, model: Published) -> bool:
  originals = [part.original for part in model.parts.values() if part.original and part.original.files]
  return bool(originals) and all((source / file).exists() for original in originals for file in original.files)


def _originals() -> str:
  files = {m.name: [f for part in m.parts.values() if part.original for f in part.original.files] for m in PUBLISHED}
  return ' or '.join(f'{name} ({", ".join(found)})' for name, found in files.items() if found)


def _small_files(source: pathlib.Path, components: dict, model: Published, given) -> dict[str, pathlib.Path]:
  """What is taken along as it is, by its name in the run: the index, the licence, and the folders that hold no network
  (tokenizer, scheduler)."""
  found = {p.name: p for p in sorted(source.iterdir())
           if p.is_file() and (p.name == INDEX or p.name.startswith('LICENSE'))}
  named = {name: value[-1] for name, value in components.items() if isinstance(value, list) and value[0] is not None}
  for name in dict.fromkeys([*named, *model.small]):
    if name in model.parts or name in model.left_out:
      continue
    folder = pathlib.Path(given.get(name, source / name))
    files = sorted(p for p in folder.rglob('*') if p.is_file() and '.git' not in p.relative_to(folder).parts)
    if name in given:  # a network may lie beside what is meant
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
  """Writes a run back as it was published: the same files, with the same tensors, and config.json as it was."""
  run, output = pathlib.Path(run), on_disk(output, 'a published model')
  _check_new(output)
  record, model = open_record(run)
  with _appearing(output) as folder:
    for name, part in model.parts.items():
      where, known = published.part_folder(run, record, name), record['parts'][name]
      _write_back(where, folder if known['layout'] == 'original' else folder / name, part, known)
      if known['layout'] != 'original':
        shutil.copyfile(where / 'config.json', folder / name / 'config.json')
    for path in record['copied']:
      (folder / path).parent.mkdir(parents=True, exist_ok=True)
      shutil.copyfile(run / path, folder / path)


def _write_back(where: pathlib.Path, output: pathlib.Path, part: Part, known: dict):
  """One part's files, of the headers that they had."""
  config = part.read_config(where / 'config.json')
  found = part_checkpoint.stored(where / 'weights')
  prefixes = part.original.files if known['layout'] == 'original' else {}
  headers = {path: path.read_bytes() for path in sorted((where / HEADERS).glob('*.safetensors'))}
  stored = [prefixes.get(path.name, '') + key for path, header in headers.items() for key in json.loads(header)]
  entries = weight_table.entries(part.rules(config, known['layout']), weights.replace(part.shapes(config), found),
                                 stored)
  output.mkdir(parents=True, exist_ok=True)
  blanks, file_of = {}, {}
  for path, header in headers.items():
    prefix = prefixes.get(path.name, '')
    keys = [key for key in json.loads(header) if prefix + key in entries]
    blanks[path.name] = weight_files.Blank(output / path.name, header, {
        key: (_dtype(entries[prefix + key], found), entries[prefix + key].source_shape(found)) for key in keys})
    file_of.update({prefix + key: (blanks[path.name], key) for key in keys})
  fills = {}
  for key in file_of:
    for path in dict.fromkeys(path for path, _ in entries[key].places):
      fills.setdefault(path, []).append(key)
  for path, leaf in part_checkpoint.each(where / 'weights', fills):
    leaf = np.asarray(leaf)
    for key in fills[path]:
      blank, stored = file_of[key]
      for place, offset in zip(entries[key].places, _offsets(entries[key], found)):
        if place[0] == path:
          blank.write(stored, offset, entries[key].part(place, leaf))
  for blank in blanks.values():
    blank.close()
  for path in (where / HEADERS).glob('*.json'):
    index = published.read_json(path)
    kept = {key: file for key, file in index['weight_map'].items() if key in file_of}
    text = path.read_text() if kept == index['weight_map'] else json.dumps({**index, 'weight_map': kept}, indent=2)
    (output / path.name).write_text(text)


def _dtype(entry: weight_table.Entry, found) -> str:
  dtype = found[entry.places[0][0]].dtype
  return next(name for name, kind in weight_files.DTYPES.items() if dtype == kind)


def _offsets(entry: weight_table.Entry, found) -> list[int]:
  """Where the part of each place begins in the tensor, in bytes."""
  sizes = [math.prod(shape) * found[entry.places[0][0]].dtype.itemsize for shape in entry.part_shapes(found)]
  return [0, *itertools.accumulate(sizes)]


def derive(run: published.Run, output: pathlib.Path, name: str, module):
  """Makes `output` a run like `run` with another module for the part `name`; it names the folders of the other parts
  and does not copy them."""
  record = json.loads(json.dumps(run.record))
  for other, part in record['parts'].items():
    part['folder'] = os.path.abspath(published.part_folder(run.folder, run.record, other))
  base, record['parts'][name]['folder'] = pathlib.Path(record['parts'][name]['folder']), name
  record['fine-tuned from'] = os.path.abspath(run.folder)
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
