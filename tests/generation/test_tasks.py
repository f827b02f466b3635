"""Every task on one small random model: what is given comes back, and is what the network is shown."""
import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from veojax.data import media
from veojax.data.tokenizer import Tokenizer
from veojax.generation import canvas, export, joining, long, sampling, stream, tasks
from veojax.generation.model import ClipConfig, Model, ModelConfig
from veojax.generation.sampling import SamplingConfig
from veojax.models.audio_codec import AudioCodec
from veojax.models.audio_vae import AudioVAE, AudioVAEConfig
from veojax.models.dit import DiT, DiTConfig
from veojax.models.text import TextConfig
from veojax.models.video_codec import VideoCodec
from veojax.models.video_vae import VideoVAE, VideoVAEConfig
from veojax.types import Clip

FRAMES, SIDE, FPS, RATE, SOUND_FILE = 9, 16, 8.0, 800, 'sound.wav'
VIDEO = VideoVAEConfig(temporal_compression=4, spatial_compression=8, patch_time=2, patch_size=4, latent_channels=4,
                       widths=(8, 8), encoder_depths=(1, 1), decoder_depths=(1, 1))
AUDIO = AudioVAEConfig(sample_rate=RATE, channels=2, hop=40, latent_channels=3, strides=(), widths=(8,), depth=1)
DIT = DiTConfig(video_channels=4, audio_channels=3, width=16, depth=1, num_heads=2, mlp_width=16,
                text=TextConfig(vocab_size=300, width=8, depth=1, num_heads=1, mlp_width=8), dtype='float32')


def drawn(make, seed=0):
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda p: jnp.asarray(rng.normal(0, 0.2, p.shape), p.dtype), jax.eval_shape(make))


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  path = tmp_path_factory.mktemp('text') / 'text.model'
  tokenizer = Tokenizer.train(['a red ball falls', 'a blue box slides', 'two balls bounce'] * 9, path, 300)
  video = VideoCodec(drawn(lambda: VideoVAE(VIDEO, rngs=nnx.Rngs(0))), np.zeros(4, 'f'), np.ones(4, 'f'), tile=16, overlap=0)
  audio = AudioCodec(drawn(lambda: AudioVAE(AUDIO, rngs=nnx.Rngs(0))), np.zeros(3, 'f'), np.ones(3, 'f'), chunk=32)
  config = ModelConfig(DIT, sampling=SamplingConfig(num_inference_steps=2, guidance_scale=1.0),
                       clip=ClipConfig(FRAMES, SIDE, SIDE, FPS), max_text=16)
  return Model(config, drawn(lambda: DiT(DIT, rngs=nnx.Rngs(0))), video, audio, tokenizer, 'tiny')


@pytest.fixture(scope='module')
def clip():
  rng = np.random.default_rng(1)
  return Clip(video=rng.integers(0, 256, (FRAMES, SIDE, SIDE, 3), np.uint8), fps=FPS,
              audio=rng.uniform(-0.5, 0.5, (FRAMES * 100, 2)).astype(np.float32), sample_rate=RATE)


def silent(clip):
  return dataclasses.replace(clip, audio=None)


CASES = {  # options, (frames, height, width), frames that are given whole from the clip's frame 0 on
    'first frame': (lambda c: {'image': c.video[0]}, (9, 16, 16), 1),
    'extend': (lambda c: {'video': c, 'num_frames': 17}, (17, 16, 16), 9),
    'soundtrack': (lambda c: {'video': silent(c)}, (9, 16, 16), 9),
    'first and last': (lambda c: {'image': c.video[0], 'last_image': c.video[-1]}, (9, 16, 16), 1),
    'keyframes': (lambda c: {'keyframes': {0.5: c.video[4]}, 'references': [c.video[2]]}, (9, 16, 16), 0),
}


@pytest.mark.parametrize('case', CASES)
def test_given_frames_come_back_as_the_codec_has_them(model, clip, case):
  options, shape, frames = CASES[case]
  made = model.generate('a red ball falls', **options(clip))
  assert made.video.shape == (*shape, 3)
  assert len(made.audio) == round(shape[0] / FPS * RATE)
  if frames:
    through = model.video_codec.reconstruct(clip.video[:frames])
    assert np.abs(made.video[:frames].astype(int) - through).max() <= 1


def test_given_sound_comes_back_as_the_codec_has_it(model, clip):
  made = model.generate('a ball', audio=clip)
  np.testing.assert_allclose(made.audio, model.audio_codec.reconstruct(clip.audio), atol=1e-5)
  extended = model.generate('a ball', video=clip, num_frames=17)
  np.testing.assert_allclose(extended.audio[:880], model.audio_codec.reconstruct(clip.audio)[:880], atol=1e-5)


def test_pasting_returns_the_given_pixels_and_samples(model, clip):
  mask = np.zeros((SIDE, SIDE), bool)
  mask[:8, :8] = True
  made = model.generate('a ball', video=clip, mask=mask, paste=True)
  np.testing.assert_array_equal(made.video[:, 11:], clip.video[:, 11:])
  assert np.any(made.video[:, :8, :8] != clip.video[:, :8, :8])
  back = model.generate('a ball', video=clip, num_frames=17, task='extend_backward', paste=True)
  np.testing.assert_array_equal(back.video[-FRAMES:], clip.video)
  np.testing.assert_array_equal(back.audio[-800:], clip.audio[-800:])
  wide = model.generate('a ball', video=clip, width=32, paste=True)
  np.testing.assert_array_equal(wide.video[:, :, 11:21], clip.video[:, :, 3:13])


def test_stills_and_references_change_what_is_made(model, clip):
  plain = model.generate('a ball')
  for given in ({'last_image': clip.video[-1]}, {'references': [clip.video[0]]}, {'keyframes': {0.5: clip.video[3]}}):
    assert np.any(model.generate('a ball', **given).video != plain.video)


def test_image_and_sound_alone(model):
  image = model.generate('a ball', task='image')
  assert image.video.shape == (1, SIDE, SIDE, 3) and image.audio is None
  assert model.generate('a ball', num_frames=1).audio is None
  sound = model.generate('a ball', task='sound')
  assert sound.video is None and len(sound.audio) == round(FRAMES / FPS * RATE)


def test_an_edit_keeps_more_the_less_its_strength(model, clip):
  through = model.video_codec.reconstruct(clip.video).astype(int)
  away = [np.abs(model.generate('a ball', video=clip, strength=s).video - through).mean() for s in (0.02, 0.3, 1.0)
          if s < 1] + [np.abs(model.generate('a ball').video - through).mean()]
  assert away[0] < away[1] < away[2]


def test_an_edit_keeps_what_its_mask_leaves_and_the_clip_beside_given_pictures(model, clip):
  mask = np.arange(SIDE) < 8
  given = tasks.Given(video=silent(clip), mask=np.broadcast_to(mask, (SIDE, SIDE)), image=clip.video[0])
  known, latent = model.canvas(given, {}, SamplingConfig(strength=0.5))
  assert known.seen[0].all() and np.all(known.seen[1:] == ~mask)
  np.testing.assert_allclose(latent.video, model.video_codec.encode(clip.video), atol=1e-5)
  assert latent.video_given[1:, :, 1].all() and not latent.video_given[1:, :, 0].any()


def test_a_clip_may_end_with_another(model, clip):
  made = model.generate('a ball', end_video=clip, paste=True)
  assert len(made.video) == 2 * FRAMES and np.array_equal(made.video[-FRAMES:], clip.video)
  made = model.generate('a ball', video=clip, end_video=clip, paste=True)
  assert len(made.video) == 3 * FRAMES and np.array_equal(made.video[-FRAMES:], clip.video)
  assert np.array_equal(made.video[:FRAMES], clip.video)


def test_files_are_read_at_the_clips_size(model, clip, tmp_path):
  export.Sample(**vars(clip)).save(tmp_path / 'clip.mp4')
  export.Sample(video=clip.video[:1].repeat(3, 1), fps=1.0).save(tmp_path / 'first.png')
  made = model.generate('a ball', image=str(tmp_path / 'first.png'), last_image=tmp_path / 'first.png')
  assert made.video.shape == (FRAMES, SIDE, SIDE, 3)
  made = model.generate('a ball', video=str(tmp_path / 'clip.mp4'), num_frames=13)
  assert len(made.video) == 13
  wide = model.generate('a ball', video=str(tmp_path / 'clip.mp4'), task='outpaint', width=32, paste=True)
  assert wide.video.shape == (FRAMES, SIDE, 32, 3)
  seen = media.read(tmp_path / 'clip.mp4', height=SIDE, width=SIDE).video
  np.testing.assert_array_equal(wide.video[:, :, 12:20], seen[:, :, 4:12])


@pytest.mark.parametrize('options, message', [
    (lambda c: {'task': 'dance'}, "task='dance'"),
    (lambda c: {'task': 'extend'}, 'without a video'),
    (lambda c: {'mask': np.ones((16, 16))}, 'mask without a video'),
    (lambda c: {'video': c}, 'nothing is left to make'),
    (lambda c: {'video': c, 'num_frames': 5, 'task': 'extend'}, 'does not fit'),
    (lambda c: {'image': c.video[0, :8]}, r'uint8\[8, 16, 3\]'),
    (lambda c: {'keyframes': {9.0: c.video[0]}}, 'outside the clip'),
    (lambda c: {'video': c, 'mask': np.ones((4, 4))}, r'mask has shape \[4, 4\]'),
    (lambda c: {'video': c, 'mask': np.ones((16, 16)), 'task': 'extend'}, "a mask with task='extend'"),
    (lambda c: {'video': c, 'end_video': c, 'num_frames': 17}, 'fill 18 frames, and nothing is left to make of 17'),
    (lambda c: {'video': c, 'end_video': dataclasses.replace(c, fps=4.0)}, '8.0 and 4.0 frames a second'),
    (lambda c: {'video': c, 'end_video': c, 'task': 'soundtrack'}, "an end_video with task='soundtrack'"),
    (lambda c: {'strength': 0.5}, 'strength below 1'),
    (lambda c: {'strength': 0.0, 'video': c}, 'strength=0.0'),
    (lambda c: {'image': 'nowhere.png'}, 'nowhere.png'),
    (lambda c: {'imagee': 1}, 'image'),
    (lambda c: {'image': dataclasses.replace(c, video=None)}, 'has no picture'),
    (lambda c: {'video': c, 'mask': SOUND_FILE}, 'mask that is given has no picture'),
    (lambda c: {'video': 5}, 'of type int'),
    (lambda c: {'audio': dataclasses.replace(c, audio=None)}, 'has no sound'),
    (lambda c: {'audio': 5}, r'a sound is int64\[\]'),
    (lambda c: {'keyframes': 'middle.png'}, "keyframes='middle.png'; give"),
    (lambda c: {'keyframes': {'middle': c.video[0]}}, "a keyframe at 'middle'"),
    (lambda c: {'references': 'face.png'}, "references='face.png'; give a list"),
    (lambda c: {'video': c, 'strength': 0.5, 'num_frames': 17}, 'size of its video, 9 frames .* asked for are 17'),
    (lambda c: {'task': 'join', 'end_video': c}, 'without a video'),
    (lambda c: {'task': 'loop', 'end_video': c}, 'with an end_video'),
    (lambda c: {'task': 'loop', 'video': c, 'strength': 0.5}, 'strength=0.5'),
    (lambda c: {'task': 'loop', 'video': c, 'image': c.video[0]}, 'image with task'),
])
def test_what_does_not_go_together_is_refused(model, clip, options, message, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  export.Sample(audio=clip.audio, sample_rate=RATE).save(SOUND_FILE)
  with pytest.raises(ValueError, match=message):
    model.generate('a ball', **options(clip))


@pytest.mark.parametrize('name, value', [
    ('num_frames', 5.5), ('height', 'tall'), ('width', True), ('fps', 'fast'), ('fps', float('nan')), ('seed', None),
    ('seed', 0.5), ('seed', 2 ** 63), ('first_index', 'x')])
def test_numbers_of_another_kind_are_named(name, value):
  """As a command line, which knows no kinds, may have them."""
  with pytest.raises(ValueError, match=re.escape(f'{name}={value!r}; give')):
    tasks.check({name: value})


def test_a_join_keeps_both_clips_and_a_loop_its_clip(model, clip):
  second = dataclasses.replace(clip, video=clip.video[::-1].copy(), audio=clip.audio[::-1].copy())
  joined = joining.join(model, 'a ball', clip, second, 8, context=5)
  assert joined.video.shape == (2 * FRAMES + 8, SIDE, SIDE, 3) and len(joined.audio) == (2 * FRAMES + 8) * 100
  np.testing.assert_array_equal(joined.video[:FRAMES], clip.video)
  np.testing.assert_array_equal(joined.video[-FRAMES:], second.video)
  far = 800  # samples away from the seam, where the sounds are the clips' own
  np.testing.assert_array_equal(joined.audio[:far], clip.audio[:far])
  np.testing.assert_array_equal(joined.audio[-far:], second.audio[-far:])
  looped = joining.loop(model, 'a ball', clip, 8, context=5)
  assert len(looped.video) == FRAMES + 8 and len(looped.audio) == (FRAMES + 8) * 100
  np.testing.assert_array_equal(looped.video[:FRAMES], clip.video)
  with pytest.raises(ValueError, match='cannot be joined'):
    joining.join(model, 'a ball', clip, dataclasses.replace(clip, fps=9.0), 8)


def test_a_join_does_not_click(model, clip):
  """Where given sound fades into made sound, samples change no faster than in either, and by the fade."""
  smooth = dataclasses.replace(clip, audio=0.4 * np.sin(np.arange(900) / 20)[:, None].repeat(2, 1).astype('f'))
  joined = joining.join(model, 'a ball', smooth, smooth, 8, context=5)
  fade = round(canvas.FEATHER_SECONDS * RATE)
  made = slice(900, len(joined.audio) - 900)
  steps, inside = np.abs(np.diff(joined.audio, axis=0)), np.abs(np.diff(joined.audio[made], axis=0)).max()
  assert steps.max() <= max(inside, np.abs(np.diff(smooth.audio, axis=0)).max()) + 2 / fade


def test_loops_and_joins_are_tasks(model, clip):
  joined = model.generate('a ball', task='join', video=clip, end_video=clip, num_frames=2 * FRAMES + 3)
  assert joined.video.shape == (2 * FRAMES + 3, SIDE, SIDE, 3)
  np.testing.assert_array_equal(joined.video[-FRAMES:], clip.video)
  (looped,) = model.generate(['a ball'], task='loop', video=clip, num_frames=FRAMES + 2)
  np.testing.assert_array_equal(looped.video[:FRAMES], clip.video)
  assert len(looped.video) == FRAMES + 2 and len(looped.audio) == round((FRAMES + 2) / FPS * RATE)
  assert len(model.generate('a ball', task='loop', num_frames=FRAMES + 4).video) == FRAMES + 4
  with pytest.raises(ValueError, match='num_frames=9 is no more than the 9 that are given'):
    model.generate('a ball', task='loop', video=clip, num_frames=FRAMES)
  with pytest.raises(ValueError, match="task='join' without an end_video"):
    model.generate('a ball', task='join', video=clip)


def test_a_picture_begins_the_clip_of_a_loop_and_is_in_no_joint(model, clip):
  made = model.generate('a ball', task='loop', image=clip.video[0], num_frames=FRAMES + 4)
  first = model.generate('a ball', image=clip.video[0], num_frames=FRAMES + 4 - 5)
  np.testing.assert_array_equal(made.video[:len(first.video)], first.video)
  assert np.all(np.any(made.video[len(first.video) - 3:] != clip.video[0], (1, 2, 3)))


def test_one_compilation_for_each_length_of_rows(model, clip):
  before, lengths = sampling.sample_rows._cache_size(), set()
  shapes = [(9, 24, 16), (5, 24, 24), (9, 16, 24), (13, 16, 16), (1, 40, 24), (17, 40, 32), (17, 32, 40), (13, 40, 40)]
  for frames, height, width in shapes:
    made = model.generate('a ball', num_frames=frames, height=height, width=width, num_inference_steps=3)
    assert made.video.shape == (frames, height, width, 3)
    _, latent = model.canvas(tasks.Given(), {'num_frames': frames, 'height': height, 'width': width}, SamplingConfig())
    lengths.add(model.rows([latent], [''], '', SamplingConfig(guidance_scale=1.0))[0].modality.shape[-1])
  assert sampling.sample_rows._cache_size() - before == len(lengths) <= len(shapes) // 2


def test_a_prompt_may_be_expanded(model):
  told = []
  made = model.generate(['a ball', 'a box'], expand=lambda text: told.append(text) or f'{text} of red glass falls')
  assert told == ['a ball', 'a box'] and [m.text for m in made] == told
  assert [m.info['told'] for m in made] == ['a ball of red glass falls', 'a box of red glass falls']
  np.testing.assert_array_equal(made[0].video, model.generate('a ball of red glass falls').video)
  with pytest.raises(ValueError, match=r"expand\('a ball'\) gave None"):
    model.generate('a ball', expand=lambda text: None)


def test_every_task_has_a_name():
  assert set(tasks.NAMES) == {f.name for f in dataclasses.fields(tasks.Given)}


@pytest.mark.parametrize('make', [long.pieces, stream.stream])
@pytest.mark.parametrize('options, message', [
    ({'last_image': np.zeros((SIDE, SIDE, 3), np.uint8)}, 'last_image .* takes a beginning'),
    ({'task': 'loop'}, "task='loop' .* takes a beginning"), ({'task': 'image'}, "task='image'"),
    ({'strength': 0.5}, 'strength=0.5'), ({'num_frames': 0}, 'num_frames=0')])
def test_what_no_long_clip_can_be_is_refused_before_anything_is_made(model, make, options, message):
  with pytest.raises(ValueError, match=message):
    next(make(model, 'a ball', **{'num_frames': 30, 'overlap': 5} | options))


def test_long_sound_comes_in_windows_that_go_on(model):
  made = list(long.pieces(model, 'a ball', 30, overlap=5, task='sound'))
  assert len(made) > 2 and all(piece.video is None for piece in made)
  first = model.generate('a ball', task='sound', num_frames=FRAMES)
  audio = np.concatenate([piece.audio for piece in made])
  assert len(audio) == round(30 / FPS * RATE)
  fade = round(canvas.FEATHER_SECONDS * RATE)
  np.testing.assert_array_equal(audio[:len(first.audio) - fade], first.audio[:-fade])


def test_a_long_clip_comes_in_pieces_that_fit_together(model):
  made = list(long.pieces(model, ['a red ball falls', 'a blue box slides'], 30, overlap=5))
  video, audio = np.concatenate([p.video for p in made]), np.concatenate([p.audio for p in made])
  assert video.shape == (30, SIDE, SIDE, 3) and len(audio) == round(30 / FPS * RATE)
  assert [p.text for p in made][0] == 'a red ball falls' and [p.text for p in made][-1] == 'a blue box slides'
  # Where a window takes over, its given frames are those of the window before: pasted, nothing changes.
  again = list(long.pieces(model, ['a red ball falls', 'a blue box slides'], 30, overlap=5))
  np.testing.assert_array_equal(np.concatenate([p.video for p in again]), video)
  with pytest.raises(ValueError, match='overlap=9'):
    next(long.pieces(model, 'a ball', 30, overlap=9))


def test_a_song_is_the_sound_of_every_window_that_it_reaches(model):
  song = np.random.default_rng(3).uniform(-0.5, 0.5, (round(20 / FPS * RATE), 2)).astype(np.float32)
  made = np.concatenate([piece.audio for piece in long.pieces(model, 'a ball', 30, overlap=5, audio=song, paste=True)])
  assert len(made) == round(30 / FPS * RATE)
  away = np.abs(made[:len(song)] - song).max(-1)
  fade = round(canvas.FEATHER_SECONDS * RATE)
  assert np.all(away[:-2 * fade] < 1e-6) and np.abs(made[len(song):]).max() > 0


def test_references_are_given_to_every_window(model, monkeypatch):
  given, canvas_of = [], tasks.canvas
  monkeypatch.setattr(tasks, 'canvas', lambda model, one, *rest, **options: (
      given.append(one), canvas_of(model, one, *rest, **options))[1])
  pictures = [np.full((SIDE, SIDE, 3), 200, np.uint8)]
  assert len(list(long.pieces(model, 'a ball', 30, overlap=5, references=pictures))) == len(given) > 2
  assert all(len(one.references) == 1 for one in given) and given[1].video is not None
