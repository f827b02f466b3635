"""A clip is the same whatever is made beside it, and on any number of devices; scales of guidance share one program."""
import jax
import numpy as np
import pytest

from veojax import sharding
from veojax.generation import model as models
from veojax.generation import sampling, tasks
from veojax.generation.wanted import Wanted

TEXTS = ['a small red ball falls', 'a large blue square slides', 'two balls collide']
STOCHASTIC = {'sampler': 'ddpm', 'seed': 5}


@pytest.fixture(scope='module')
def model(model_folder):
  return models.load(model_folder)


@pytest.fixture(scope='module')
def batch(model):
  return model.generate(TEXTS, **STOCHASTIC)


def same(one, two, tolerance=1e-4):
  # A pixel may fall on the other side of a rounding.
  return (np.abs(one.video.astype(int) - two.video).max() <= 1 and np.abs(one.audio - two.audio).max() <= tolerance
          and one.text == two.text and one.info['index'] == two.info['index'])


def test_a_clip_does_not_depend_on_its_batch_even_with_fresh_noise(model, batch):
  late = model.generate(TEXTS[2], first_index=2, **STOCHASTIC)
  pair = model.generate(TEXTS[1:], first_index=1, **STOCHASTIC)
  assert same(late, batch[2]) and same(pair[0], batch[1]) and same(pair[1], batch[2])
  assert np.abs(model.generate(TEXTS[2], **STOCHASTIC).video.astype(int) - late.video).max() > 10


def test_a_clip_does_not_depend_on_the_number_of_devices(model_folder, batch):
  with jax.set_mesh(sharding.make_mesh(devices=jax.devices()[:2])):
    for one, two in zip(models.load(model_folder).generate(TEXTS, **STOCHASTIC), batch):
      assert same(one, two)


def test_scales_and_shifts_share_one_program(model):
  model.generate(TEXTS[0], guidance_scale=3.0)
  before = sampling.sample_rows._cache_size()
  made = [model.generate(TEXTS[0], guidance_scale=scale, video_shift=shift).video
          for scale, shift in ((4.0, 1.0), (7.5, 1.0), (4.0, 2.0))]
  assert sampling.sample_rows._cache_size() == before
  assert all(np.any(made[0] != other) for other in made[1:])


def test_clips_of_one_call_may_have_their_own_scales_shifts_and_seeds(model):
  settings = [{'guidance_scale': 2.0, 'video_shift': 3.0}, {'guidance_scale': 5.0, 'audio_guidance_scale': 1.5},
              {'audio_shift': 2.0}]
  wanted = [Wanted(text, seed, 4, options={'sampler': 'ddpm', **own})
            for seed, (text, own) in enumerate(zip(TEXTS, settings))]
  assert len({model.kind(one) for one in wanted}) == 1
  for i, made in enumerate(model.make(wanted)):
    alone = model.generate(TEXTS[i], seed=i, first_index=4, sampler='ddpm', **settings[i])
    assert same(made, alone) and made.info == alone.info
    assert np.abs(model.generate(TEXTS[i], seed=i, first_index=4, sampler='ddpm').video - alone.video).max() > 1


@pytest.mark.parametrize('options', [{'num_inference_steps': 3}, {'guidance_scale': 1.0}, {'height': 16}])
def test_clips_of_other_programs_or_sizes_are_made_apart(model, options):
  wanted = [Wanted('a ball'), Wanted('a ball', options=options)]
  assert len({model.kind(one) for one in wanted}) == 2
  with pytest.raises(ValueError, match='make the others apart'):
    model.make(wanted)


def test_each_clip_may_have_its_own_first_frame(model):
  rng = np.random.default_rng(0)
  images = [rng.integers(0, 256, (32, 32, 3), np.uint8) for _ in range(2)]
  together = model.generate(TEXTS[:2], given=[tasks.Given(image=image) for image in images])
  for i in range(2):
    assert same(together[i], model.generate(TEXTS[i], image=images[i], first_index=i))
  with pytest.raises(ValueError, match='2 prompts and 1 given'):
    model.generate(TEXTS[:2], given=[tasks.Given()])
  with pytest.raises(ValueError, match='of one kind'):
    model.generate(TEXTS[:2], given=[tasks.Given(), tasks.Given(last_image=images[0])])
