"""Clips of any length as a stream: every latent frame has a noise level of its own, later ones are noisier.

A window of latent frames is denoised a few steps at a time (Diffusion Forcing, Chen et al. 2024; Rolling Diffusion,
Ruhe et al. 2024). After every few steps its first noisy frame has become clean and is handed on, and one of pure noise
enters at its end, so that each goes through the whole schedule. Clean frames stay in view for `overlap` frames and then
leave it: what is drawn is the whole clip's distribution as far as a frame, given the clean ones in view, does not
depend on those before. The sound goes with the frames beside it.

Nothing is encoded again or decoded twice: the codecs carry their state from chunk to chunk, so there is no seam, in
picture or in sound. Memory holds the window and a chunk. The model should have been trained on the task `stream`.
"""
import dataclasses
import math
from collections.abc import Iterator

import jax
import numpy as np

from veojax import sharding
from veojax.data import latent_clip, packing, tasks as training_tasks
from veojax.data.latent_clip import LatentClip
from veojax.diffusion import timesteps
from veojax.generation import prompts as texts
from veojax.generation import rows, sampling, tasks
from veojax.generation.export import Sample
from veojax.types import Tokens


def stream(model, prompts: str | list[str], num_frames: int, *, window: int | None = None, overlap: int = 9,
           seed: int = 0, **options) -> Iterator[Sample]:
  """A clip of `num_frames` frames, piece after piece in time; `long.save` writes them with their tags as they come.

  prompts: one, or a chain of them, each of which rules an equal share of the time. window: frames in view, the model's
  own number by default; overlap: of them, those that are clean once the stream flows. options: as of `Model.generate`;
  of what is given, a beginning (image, or video with its sound) and references. The number of inference steps is raised
  to a multiple of the latent frames that are not clean. Raises ValueError for what does not go together.
  """
  made = Latents(model, prompts, num_frames, window, overlap, seed, options)
  picture, sound = model.video_codec, model.audio_codec if made.has_sound else None
  height, width, fps = made.held.height, made.held.width, made.held.fps
  video, audio, states = [], [], [None, None]
  left = [num_frames, model.num_samples(num_frames, fps) if sound else 0]
  for piece, text, is_last in made:
    video += list(piece.video)
    audio += list(piece.audio) if sound else []
    if len(video) < picture.chunk and not is_last:
      continue
    out = Sample(text=text, info=made.info, fps=fps)
    out.video, states[0] = picture.decode_chunk(np.stack(video[:picture.chunk]), height, width, states[0])
    if sound:
      parts, out.sample_rate = [np.zeros((0, sound.channels), np.float32)], sound.sample_rate
      while len(audio) >= sound.chunk or (is_last and audio):
        samples, states[1] = sound.decode_chunk(np.stack(audio[:sound.chunk]), states[1])
        parts.append(samples)
        del audio[:sound.chunk]
      out.audio = np.concatenate(parts)[:left[1]]
      left[1] -= len(out.audio)
    del video[:picture.chunk]
    out.video = out.video[:left[0]]
    left[0] -= len(out.video)
    yield out


class Latents:
  """The clean latents of a stream: iterates over (one latent frame with the sound beside it, its prompt, whether it is
  the last). `held` is what is in view."""

  def __init__(self, model, prompts, num_frames, window, overlap, seed, options):
    given = {name: options.pop(name) for name in tasks.NAMES if name in options}
    tasks.check_long(model, given, options.get('strength', 1.0), num_frames=num_frames, seed=seed)
    self.model, self.chain = model, texts.chain(prompts, num_frames)
    expand = options.pop('expand', None)
    self.told = texts.expanded(self.chain, expand)
    window = min(num_frames, model.config.clip.num_frames if window is None else window)
    asked = {'num_frames': window, **{name: options.pop(name) for name in ('height', 'width', 'fps')
                                      if options.get(name) is not None}}
    self.negative = options.pop('negative_prompt', '')
    config = model.sampling(options)
    with self._mesh(config):
      _, start = model.canvas(tasks.Given(**given), asked, config)
      self.config = sampling.for_clip(start, config)
      self._measure(start, num_frames, overlap)
    self.references = tuple(s for s in start.stills if s.time == training_tasks.REFERENCE_TIME)
    self.given = self._given(start)
    self.held = latent_clip.window(start._replace(stills=()), 0, self.given)
    self.key = jax.random.key(seed)
    self.info = {'model': model.name, 'seed': seed, 'index': 0, **dataclasses.asdict(self.config)}

  def _mesh(self, config):
    return sharding.default_mesh(1 + len(sampling.away_from(config)))

  def _measure(self, start: LatentClip, num_frames, overlap):
    """How many latent frames there are, are in view and are denoised together, and in what steps."""
    if start.video is None:
      raise ValueError('a stream has a picture; make sound alone in windows')
    tc = start.temporal_compression
    self.has_sound = start.audio is not None
    self.total = 1 + math.ceil((num_frames - 1) / tc)
    self.total_sound = 0
    if self.has_sound:
      self.total_sound = self.model.audio_codec.latent_length(self.model.num_samples(num_frames, start.fps))
    self.view, kept = len(start.video), math.ceil(overlap / tc)
    self.noisy = self.view - kept
    if overlap < 1 or (self.noisy < 1 and self.view < self.total):
      raise ValueError(f'overlap={overlap} leaves {self.noisy} of {self.view} latent frames in view to be made; give '
                       f'at least 1 and at most {tc * (self.view - 1)}, or a larger window')
    self.noisy = max(1, self.noisy)
    self.stride = math.ceil(self.config.num_inference_steps / self.noisy)
    self.config = dataclasses.replace(self.config, num_inference_steps=self.stride * self.noisy)
    t, h, w, _ = start.video.shape
    sound = math.ceil((self.view * tc + 1) / start.fps * start.latent_rate) + 1 if self.has_sound else 0
    self.pack = rows.pack_config(
        sampling.away_from(self.config), self.model.config.max_text, self.model.config.dit.channels,
        (self.view + len(start.stills)) * h * w + sound, self.view)

  def _given(self, start: LatentClip) -> int:
    """Latent frames at the beginning that are given, with their sound."""
    whole = start.video_given.all((1, 2))
    count = len(whole) if whole.all() else int(np.argmin(whole))
    fits = count < len(whole) and not start.video_given[count:].any() and len(self.references) == len(start.stills)
    if self.has_sound:
      # The sound of a given video ends a little later than the instant that its last frame shows.
      beside = latent_clip.sound_frames(start, len(start.audio))
      fits = fits and start.audio_given[beside < count].all() and not start.audio_given[beside > count].any()
    if not fits:
      raise ValueError('a stream takes a beginning of picture and sound, shorter than its window, and references; give '
                       'nothing else, or make the clip in windows')
    return count

  def __iter__(self):
    for k in range(self.given):
      yield latent_clip.window(self.held, k, k + 1), self.chain[0], False
    for newest in range(self.given, self.total + self.noisy - 1):
      self._advance(newest, self.told[self._ruling(newest)])
      done = newest - self.noisy + 1
      if done >= self.given:
        yield latent_clip.window(self.held, done, done + 1), self.chain[self._ruling(done)], done == self.total - 1

  def _ruling(self, frame: int) -> int:
    return min(frame, self.total - 1) * len(self.chain) // self.total

  def _advance(self, newest: int, text: str):
    """A stride of steps, in which frame `newest` makes its first one."""
    oldest = max(self.given, newest - self.noisy + 1)  # of those that are not clean
    first = max(0, oldest - (self.view - self.noisy))
    end = min(self.total, max(newest + 1, self.given + self.noisy))
    while self.held.first + len(self.held.video) < end:
      self._enter()
    self.held = latent_clip.window(self.held, first, end)
    clean = np.arange(first, end) < oldest
    held = self.held._replace(video_given=np.broadcast_to(clean[:, None, None], self.held.video.shape[:3]),
                              stills=self.references, frame_levels=True)
    if self.has_sound:
      beside = np.minimum(latent_clip.sound_frames(held, len(held.audio)), end - 1)
      held = held._replace(audio_given=beside < oldest)
    encode = lambda text: self.model.tokenizer.encode(text, self.model.config.max_text)
    away = sampling.away_from(self.config)
    evaluations = rows.evaluations([held], [encode(text)], encode(self.negative), away, self.pack)
    tokens = evaluations[0]
    frame_BL1 = np.take_along_axis(tokens.group_level, tokens.group, 1)[..., None]
    with self._mesh(self.config):
      levels = timesteps.rolling(sampling.schedule(tokens, [self.config]), newest - (first + frame_BL1), self.stride)
      key = jax.random.fold_in(jax.random.fold_in(self.key, 1), newest)[None]
      made = sampling.denoise(self.model.laid_out(), evaluations, tokens.latent, np.asarray(levels), key,
                              objective=self.model.config.objective, configs=[self.config])
    row = Tokens(*(x[0] for x in tokens))._replace(latent=made[0])
    video, audio = packing.unpack(row, 1, held.video.shape, held.audio.shape if self.has_sound else None)
    self.held = self.held._replace(video=video, audio=audio)

  def _enter(self):
    """One more latent frame, of noise, with the sound beside it."""
    held, frame = self.held, self.held.first + len(self.held.video)
    sigma = np.asarray(self.model.config.objective.make_process().sigma(1.0))
    noise = lambda stream, shape: sigma * np.asarray(jax.random.normal(
        jax.random.fold_in(jax.random.fold_in(self.key, 2 + stream), frame), shape))
    video = np.concatenate([held.video, noise(0, (1, *held.video.shape[1:]))])
    if not self.has_sound:
      self.held = held._replace(video=video)
      return
    heard = held.first_sound + len(held.audio)
    count = self.total_sound - heard
    if frame < self.total - 1:
      ahead = latent_clip.sound_frames(held._replace(first_sound=heard), count)
      count = int(np.searchsorted(ahead, frame, 'right'))
    self.held = held._replace(video=video, audio=np.concatenate([held.audio, noise(1, (count, held.audio.shape[1]))]))
