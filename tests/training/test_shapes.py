"""The shipped mixture of shapes (configs/mixture.py): rows are full, and one compiled step takes them all."""
import dataclasses
import pathlib

import numpy as np
import pytest

from veojax.data import datasets, mixing, pipeline, world_mixture
from veojax.data.latent_clip import LatentClip
from veojax.data.tokenizer import Tokenizer
from veojax.generation import codecs
from veojax.models.dit import DiTConfig
from veojax.models.text import TextConfig
from veojax.training import latents, loop, run, step
from veojax.training.transformer import TransformerStage

CONFIG = run.build(run.read_config(pathlib.Path(__file__).resolve().parents[2] / 'configs' / 'mixture.py'))
SMALL = DiTConfig(video_channels=16, audio_channels=64, width=16, depth=1, num_heads=2, mlp_width=16,
                  text=TextConfig(vocab_size=600, width=16, depth=1, num_heads=2, mlp_width=16))


class Drawn(latents.EncodedSource):
  """Random latents, of the shapes and with the places that encoding would give."""

  def __getitem__(self, i):
    rng, shape, length = np.random.default_rng(i), self.lengths.video[i], self.lengths.audio[i]
    fps, height, width = (self.dataset.index[name][i].item() for name in ('fps', 'height', 'width'))
    return LatentClip(
        rng.normal(size=(*shape, 16)) if shape.all() else None, rng.normal(size=(length, 64)) if length else None,
        fps=fps, height=height, width=width, text=self.text(i), **self.compressions)


@pytest.fixture(scope='module')
def parts(tmp_path_factory):
  """The mixture's data sets, a tenth as large as shipped, with the weights of the config."""
  folder = tmp_path_factory.mktemp('mixture')
  world_mixture.make(folder, 400, workers=1, progress=False)
  return tuple(dataclasses.replace(part, path=str(folder / pathlib.Path(part.path).name)) for part in CONFIG.data)


@pytest.fixture(scope='module')
def source(parts):
  both = [run.codec_of(CONFIG, pathlib.Path(), kind) for kind in codecs.KINDS]
  drawn = [Drawn(datasets.open_dataset(part.path), *both) for part in parts]
  weights = np.repeat([part.weight for part in parts], [len(s) for s in drawn])
  return pipeline.RowSource(mixing.JoinedLatents(drawn), Tokenizer.load(parts[0].path + '/text.model'), CONFIG.pack,
                            CONFIG.seed, CONFIG.caption_dropout, weights=weights)


def test_the_mixture_is_what_it_says(parts):
  index = [datasets.open_dataset(part.path).index for part in parts]
  joined = {name: np.concatenate([i[name] for i in index]) for name in index[0]}
  seen = joined['num_frames'] > 0
  ratios = {round(h / w, 3) for h, w in zip(joined['height'][seen], joined['width'][seen])}
  assert len(ratios) == 5 and set(joined['num_frames'][seen]) == {1, 9, 17, 25, 33}
  assert set(joined['fps'][seen]) == {12, 24}
  clips, silent, images, sounds = index
  assert clips['num_frames'].all() and clips['num_samples'].all()
  assert not silent['num_samples'].any() and not images['num_samples'].any() and (images['num_frames'] == 1).all()
  assert not sounds['num_frames'].any() and sounds['num_samples'].all()


def test_rows_of_the_mixture_are_full_with_no_clip_left_out_or_cut(source):
  """At least 95 % of the tokens of the rows as they are trained on, dropped captions and all."""
  assert source.report['left out'] == source.report['cut'] == 0
  rows = [source[r] for r in range(source.rows_per_epoch)]
  assert np.mean([row.modality > 0 for row in rows]) >= 0.95
  held = {clip for r in range(2 * source.rows_per_epoch) for clip in source.clips_of(r)}  # sounds: every other epoch
  assert held == set(range(len(source.latents)))


class Mixed(TransformerStage):
  """Without codecs and evaluation: what the loop trains."""

  def __init__(self, config, source):
    self.config, self.source, self._start = config, source, None

  def evaluate(self, ema):
    return {}

  def export(self, ema, workdir):
    pass


def test_one_compiled_step_serves_every_shape(source, tmp_path, monkeypatch):
  """Counted over a run; images, clips and silent clips are together in its first batch, sounds come in the next."""
  made, original = [], step.make
  monkeypatch.setattr(step, 'make', lambda *arguments: made.append(original(*arguments)) or made[-1])
  config = dataclasses.replace(CONFIG, dit=SMALL, loop=dataclasses.replace(
      CONFIG.loop, num_steps=3, batch_size=16, evaluate_every=0, save_every=0, log_every=1))
  loop.fit(Mixed(config, source), tmp_path)
  lengths = source.latents.lengths
  shapes = [{(*lengths.video[clip].tolist(), int(lengths.audio[clip])) for row in range(rows)
             for clip in source.clips_of(row)} for rows in (16, 3 * 16)]
  first, whole = ({(min(frames, 2), sound > 0) for frames, _, _, sound in shape} for shape in shapes)
  assert first == {(2, True), (2, False), (1, False)} and whole == first | {(0, True)}
  assert len(shapes[1]) >= 20 and [compiled._cache_size() for compiled in made] == [1]
