"""Data sets on disk: TFDS builders that need no TensorFlow, and the reader that gives clips back.

OUTPUT/
  world/1.0.0/ or folder/1.0.0/   a TFDS data set in array_record; `tfds.builder_from_directory` reads it anywhere
  text.model                      the tokenizer
  index-<split>.npz               sizes of every example, in the order of the split: what packing plans from
  prepare.json                    how it was made, and what was left out; written last, so a folder with it is whole

An example holds a clip decoded (`video`, `audio`), or as the bytes of a media file (`media`), or, of the world, as the scene
(also in `media`) that is rendered whenever the clip is read. TFDS 4.9 cannot
read an empty tensor of several unknown dimensions back without TensorFlow, so an absent picture or sound is stored as a
few zeros; `num_frames` and `num_samples` are 0 there, and they decide. An image is one frame; times are in seconds.
"""
import contextlib
import dataclasses
import functools
import io
import json
import os
import pathlib
import threading

import numpy as np
import tensorflow_datasets as tfds

from veojax.data.shown_clip import ShownClip
from veojax.files import on_disk
from veojax.types import Clip

VERSION = '1.0.0'
SHARD_BYTES = 128 << 20  # TFDS holds a shard in memory while it writes one
INDEX = {'num_frames': np.int32, 'height': np.int32, 'width': np.int32, 'fps': np.float32, 'num_samples': np.int32,
         'sample_rate': np.int32, 'channels': np.int32}
_SCENE = b'veojax scene '  # and then JSON: the seed and the WorldConfig
_NO_VIDEO = np.zeros((1, 1, 2, 3), np.uint8)
_NO_AUDIO = np.zeros((1, 1), np.float32)
_NO_MEDIA = np.zeros((0,), np.uint8)


def features() -> tfds.features.FeaturesDict:
  """The features of an example. `info` is JSON: where the clip comes from, or the world's exact record."""
  f = tfds.features
  return f.FeaturesDict({
      'id': f.Text(), 'text': f.Text(), 'info': f.Text(),
      'video': f.Tensor(shape=(None, None, None, 3), dtype=np.uint8, encoding='bytes'),
      'audio': f.Tensor(shape=(None, None), dtype=np.float32, encoding='bytes'),
      'media': f.Tensor(shape=(None,), dtype=np.uint8, encoding='bytes'),
      **{key: f.Scalar(dtype) for key, dtype in INDEX.items()}})


def sizes(clip: Clip) -> dict:
  """The index's entry for a clip: int or float per key of INDEX, 0 for what it has not."""
  num_frames, height, width = clip.video.shape[:3] if clip.video is not None else (0, 0, 0)
  num_samples, channels = clip.audio.shape if clip.audio is not None and clip.audio.size else (0, 0)
  return dict(num_frames=num_frames, height=height, width=width, fps=float(clip.fps if num_frames else 0),
              num_samples=num_samples, sample_rate=int(clip.sample_rate if num_samples else 0), channels=channels)


def serialize(id: str, clip: Clip, media: bytes | None = None) -> bytes:
  """One example as TFDS stores it: decoded, or as `media`, whose decoded form must be `clip`."""
  decoded = media is None
  example = dict(
      id=id, text=clip.text, info=json.dumps(clip.info), **sizes(clip),
      video=np.ascontiguousarray(clip.video) if decoded and clip.video is not None else _NO_VIDEO,
      audio=np.ascontiguousarray(clip.audio) if decoded and clip.audio is not None and clip.audio.size else _NO_AUDIO,
      media=_NO_MEDIA if decoded else np.frombuffer(media, np.uint8))
  feature, serializer = _codec()
  return serializer.serialize_example(feature.encode_example(example))


def scene(seed: int, world) -> bytes:
  """What stands for a clip of the world that is rendered when it is read; world: its WorldConfig."""
  return _SCENE + json.dumps({'seed': seed, 'world': dataclasses.asdict(world)}).encode()


def _render(media: bytes) -> Clip:
  from veojax.data import world_clip
  from veojax.data.world import WorldConfig
  stored = json.loads(media[len(_SCENE):])
  tuples = {key: tuple(value) if isinstance(value, list) else value for key, value in stored['world'].items()}
  clip = world_clip.make(stored['seed'], WorldConfig(**tuples))
  clip.info = json.loads(json.dumps(clip.info))  # as a stored clip has it
  return clip


@functools.cache
def _codec():
  feature = features()
  return feature, tfds.core.example_serializer.ExampleSerializer(feature.get_serialized_info())


def deserialize(record: bytes) -> ShownClip:
  """The clip in a record; a compressed one is decoded here, and only here is PyAV imported."""
  example = _codec()[0].deserialize_example_np(record)
  num_frames, num_samples = example['num_frames'], example['num_samples']
  clip = ShownClip(fps=example['fps'], sample_rate=example['sample_rate'], text=example['text'].decode(),
                   info=json.loads(example['info']))
  if not example['media'].size:
    clip.video = example['video'] if num_frames else None
    clip.audio = example['audio'] if num_samples else None
    return clip
  stored = example['media'].tobytes()
  if stored.startswith(_SCENE):
    whole = _render(stored)
    return ShownClip(whole.video if num_frames else None, whole.audio if num_samples else None,
                     whole.fps if num_frames else 0.0, whole.sample_rate if num_samples else 0, whole.text, whole.info)
  from veojax.data import media
  decoded = media.read(
      stored, fps=clip.fps or None, sample_rate=clip.sample_rate or None,
      channels=example['channels'] or None)
  if num_frames:  # odd sizes were padded for the codec
    clip.video = _fit(decoded.video, num_frames)[:, :example['height'], :example['width']]
  if num_samples:
    clip.audio = _fit(decoded.audio, num_samples)
  return clip


def _fit(array: np.ndarray, length: int) -> np.ndarray:
  """The first `length` rows, the last one repeated where they are fewer: another ffmpeg may count one more or less."""
  return array[np.minimum(np.arange(length), len(array) - 1)] if len(array) != length else array


class _RecordWriter(tfds.core.writer.ExampleWriter):
  """array_record with fast compression: 2.6 times as fast to write as its default, as fast to read."""

  def write(self, path, examples):
    from array_record.python import array_record_module
    writer = array_record_module.ArrayRecordWriter(os.fspath(path), 'group_size:1,zstd:1')
    for _, record in examples:
      writer.write(record)
    writer.close()


class _Builder(tfds.core.ShardBasedBuilder, skip_registration=True):
  """Writes a data set from pieces prepared before: shards {split: [a callable that iterates (key, record), ...]}."""
  VERSION = tfds.core.Version(VERSION)

  def __init__(self, *, shards=None, **kwargs):
    self._shards = shards
    super().__init__(file_format='array_record', **kwargs)

  def _info(self):
    return tfds.core.DatasetInfo(builder=self, description=self.__doc__, features=features())

  def _example_writer(self):
    return _RecordWriter(self.info.file_format)

  def _shard_iterators_per_split(self, dl_manager):
    decode = self.info.features.deserialize_example_np
    def examples(records):
      return ((key, decode(record)) for key, record in records())
    return {split: [functools.partial(examples, shard) for shard in shards] for split, shards in self._shards.items()}


class World(_Builder):
  """Scenes of the built-in world: picture, impact sounds, captions, and the exact record of each."""


class Folder(_Builder):
  """Clips of a folder of media with captions."""


BUILDERS = {'world': World, 'folder': Folder}


def write(name: str, output, shards: dict):
  """Writes OUTPUT/<name>/1.0.0 with the builder of that name; appears at once, when it is whole."""
  downloads = pathlib.Path(output, name, 'downloads')
  with contextlib.redirect_stdout(io.StringIO()):  # TFDS prints that it downloads
    builder = BUILDERS[name](data_dir=os.fspath(output), shards=shards)
    builder.download_and_prepare(download_dir=os.fspath(downloads))
  for folder in (downloads / 'extracted', downloads):  # TFDS makes them though nothing is downloaded
    with contextlib.suppress(OSError):
      folder.rmdir()


class Dataset:
  """Random access to the clips of one split. Safe to use from many threads; pickles as its path and split."""

  def __init__(self, path, split: str):
    self.path, self.split = os.fspath(path), split
    with open(os.path.join(self.path, 'prepare.json')) as file:
      self.info: dict = json.load(file)
    with np.load(os.path.join(self.path, f'index-{split}.npz')) as index:
      self.index: dict[str, np.ndarray] = dict(index)
    self.tokenizer_path = os.path.join(self.path, 'text.model')
    self._source = None
    self._lock = threading.Lock()

  def _record(self, i: int) -> bytes:
    with self._lock:
      if self._source is None:
        builder = tfds.builder_from_directory(os.path.join(self.path, self.info['name'], VERSION))
        raw = tfds.decode.DeserializeMethod.RAW_BYTES
        self._source = builder.as_data_source(split=self.split, deserialize_method=raw)
    return self._source[i]

  def __len__(self) -> int:
    return len(self.index['num_frames'])

  def __getitem__(self, i: int) -> ShownClip:
    """Clip number i, in [0, len). Arrays may be read-only views of what was read."""
    return deserialize(self._record(self._check(i)))

  def text(self, i: int) -> str:
    """The caption of clip number i, without decoding the clip."""
    return self._field(i, 'text')

  def id(self, i: int) -> str:
    """The name of clip number i: of a folder of media its file."""
    return self._field(i, 'id')

  def _field(self, i, name) -> str:
    return _codec()[0].deserialize_example_np(self._record(self._check(i)))[name].decode()

  def _check(self, i) -> int:
    i = i.__index__()
    if not 0 <= i < len(self):
      raise IndexError(f'clip {i} of {len(self)} in {self.path}')
    return i

  def __reduce__(self):
    return Dataset, (self.path, self.split)

  def __repr__(self) -> str:
    return f'Dataset({self.path!r}, {self.split!r}, {len(self)} clips)'


def open_dataset(output, split: str = 'train') -> Dataset:
  """The split of a folder that `veojax prepare` wrote; ValueError, with the remedy, when there is none."""
  output = on_disk(output, 'a data set', 'read from')
  if not output.is_dir():
    raise ValueError(f'{output} does not exist; run: veojax prepare --source world|FOLDER --output {output}')
  if not (output / 'prepare.json').exists():
    state = 'is not finished' if (output / 'pieces').exists() else 'holds no prepared data set'
    raise ValueError(f'{output} {state}; run: veojax prepare --source world|FOLDER --output {output}')
  splits = sorted(path.stem.removeprefix('index-') for path in output.glob('index-*.npz'))
  if split not in splits:
    raise ValueError(f'{output} has no split {split!r}, only {", ".join(splits)}; '
                     'prepare with a validation_fraction above 0 to hold clips back')
  return Dataset(output, split)
