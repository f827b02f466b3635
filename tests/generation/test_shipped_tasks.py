"""Every task by the model that comes with the package, in one step and small: what is given comes back as its codecs
have it, and picture and sound are as large and as long as they were asked for."""
import dataclasses

import jax
import numpy as np
import pytest

import veojax
from tests.generation.test_tasks import CASES, FRAMES
from veojax import sharding
from veojax.data import world, world_clip
from veojax.generation import long, stream
from veojax.generation.model import ClipConfig

SIDE, FPS, RATE = 32, 16.0, 16000
LONGER = 17
PROMPT = 'a large red ball falls and bounces'
LEFT = np.repeat([[False, True]], SIDE // 2, 1).repeat(SIDE, 0)  # what is made: the right half


@pytest.fixture(scope='module', autouse=True)
def one_device():
  with jax.set_mesh(sharding.make_mesh(devices=jax.devices()[:1])):
    yield


@pytest.fixture(scope='module')
def model():
  model = veojax.load('world')
  sampling = dataclasses.replace(model.config.sampling, num_inference_steps=1, guidance_scale=1.0)
  model.config = dataclasses.replace(model.config, clip=ClipConfig(FRAMES, SIDE, SIDE, FPS), sampling=sampling)
  return model


@pytest.fixture(scope='module')
def clip():
  made = world_clip.make(2, world.WorldConfig(num_frames=FRAMES, height=SIDE, width=SIDE, levels=('L2',)))
  assert (made.fps, made.sample_rate, made.audio.shape[1]) == (FPS, RATE, 2)
  return made


def error(one, other) -> float:
  return float(np.square(one.astype(float) - other).mean())


def seen(model, made, given):
  """Whether frames are these, as far as the codec keeps them."""
  return error(made, given) < 2 * error(model.video_codec.reconstruct(given), given) + 1


def heard(model, made, given):
  return error(made, given) < 2 * error(model.audio_codec.reconstruct(given), given) + 1e-6


def whole(made, frames=FRAMES, height=SIDE, width=SIDE):
  """Whether picture and sound have the sizes and the length of so many frames."""
  return made.video.shape == (frames, height, width, 3) and made.audio.shape == (round(frames / FPS * RATE), 2)


@pytest.mark.parametrize('case', CASES)
def test_given_frames_come_back(model, clip, case):
  options, (frames, *_), given = CASES[case]
  made = model.generate(PROMPT, **options(clip))
  assert whole(made, frames)
  if given:
    assert seen(model, made.video[:given], clip.video[:given])
  if case == 'extend':
    assert heard(model, made.audio[:len(clip.audio) - RATE // 25], clip.audio[:-(RATE // 25)])  # the last latent is made


def test_a_clip_gets_a_beginning(model, clip):
  made = model.generate(PROMPT, video=clip, num_frames=LONGER, task='extend_backward', paste=True)
  assert whole(made, LONGER)
  np.testing.assert_array_equal(made.video[-FRAMES:], clip.video)
  np.testing.assert_array_equal(made.audio[-len(clip.audio) + 400:], clip.audio[400:])  # behind the fade


def test_parts_of_frames_are_made(model, clip):
  """Inpainting keeps what is not masked, outpainting the clip in the middle of a wider frame, both the sound."""
  inside = model.generate(PROMPT, video=clip, mask=LEFT)
  outside = model.generate(PROMPT, video=clip, task='outpaint', width=2 * SIDE)
  assert whole(inside) and whole(outside, width=2 * SIDE)
  away = SIDE // 2 - 8  # from the mask, whose edge the decoder blurs
  assert seen(model, outside.video[:, :, SIDE // 2:-SIDE // 2], clip.video)
  kept = model.video_codec.reconstruct(clip.video)[:, :, :away]
  assert error(inside.video[:, :, :away], clip.video[:, :, :away]) < 2 * error(kept, clip.video[:, :, :away]) + 1
  assert error(inside.video[:, :, SIDE // 2:], clip.video[:, :, SIDE // 2:]) > 100
  for made in (inside, outside):
    assert heard(model, made.audio, clip.audio)


def test_a_sound_gets_a_picture_and_each_is_made_alone(model, clip):
  made = model.generate(PROMPT, audio=clip)
  assert whole(made) and heard(model, made.audio, clip.audio)
  image, sound = (model.generate(PROMPT, task=task) for task in ('image', 'sound'))
  assert image.video.shape == (1, SIDE, SIDE, 3) and image.audio is None
  assert sound.video is None and sound.audio.shape == clip.audio.shape


def test_an_edit_keeps_more_than_a_clip_made_anew(model, clip):
  edited = model.generate(PROMPT, video=clip, strength=0.3, num_inference_steps=2)
  anew = model.generate(PROMPT)
  assert whole(edited) and whole(anew)
  assert error(edited.video, clip.video) < error(anew.video, clip.video) / 2


def test_loops_and_joins_keep_their_clips(model, clip):
  looped = model.generate(PROMPT, task='loop', video=clip, num_frames=FRAMES + 5)
  joined = model.generate(PROMPT, task='join', video=clip, end_video=clip, num_frames=2 * FRAMES + 5)
  assert whole(looped, FRAMES + 5) and whole(joined, 2 * FRAMES + 5)
  for video in (looped.video[:FRAMES], joined.video[:FRAMES], joined.video[-FRAMES:]):
    np.testing.assert_array_equal(video, clip.video)


@pytest.mark.parametrize('make, options', [(long.pieces, {'overlap': 5}), (stream.stream, {'window': 9, 'overlap': 4})])
def test_a_long_clip_goes_on_from_a_picture(model, clip, make, options):
  pieces = list(make(model, [PROMPT, 'a small blue square'], 20, image=clip.video[0], **options))
  video, audio = (np.concatenate([getattr(piece, half) for piece in pieces]) for half in ('video', 'audio'))
  assert len(pieces) > 1 and whole(dataclasses.replace(pieces[0], video=video, audio=audio), 20)
  assert seen(model, video[:1], clip.video[:1])
