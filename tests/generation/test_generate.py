"""A model on disk makes clips: of any size, prompt and sampler, each by its own seed."""
import jax
import numpy as np
import pytest

from veojax import sharding
from veojax.generation import model as models
from veojax.models import weights
from veojax.models.dit import DiT


def test_clips_have_the_asked_shape_with_sound_as_long_as_the_picture(model_folder):
  model = models.load(model_folder)
  clip = model.generate('a red ball', num_frames=10, height=20, width=28, fps=12)
  assert clip.video.shape == (10, 20, 28, 3) and clip.video.dtype == np.uint8
  assert clip.audio.shape == (round(10 / 12 * 4000), 2) and clip.sample_rate == 4000
  assert clip.fps == 12 and clip.text == 'a red ball'


@pytest.mark.parametrize('prompt', ['', 'пёс лает 犬が吠える 🐕', 'word ' * 500], ids=['empty', 'other scripts', 'very long'])
def test_any_prompt_works(model_folder, prompt):
  assert models.load(model_folder).generate(prompt).video.shape == (9, 32, 32, 3)


def test_a_clip_depends_on_its_seed_and_index_and_not_on_its_batch(model_folder):
  model = models.load(model_folder)
  both, one = model.generate(['a ball', 'a square'], seed=3), model.generate('a ball', seed=3)
  assert np.abs(both[0].video.astype(int) - one.video).max() <= 1
  assert np.abs(both[0].audio - one.audio).max() < 1e-3
  assert not np.array_equal(model.generate('a ball', seed=4).audio, one.audio)


def test_a_transformer_stays_on_the_host_until_it_is_laid_out(model_folder):
  """Then as the mesh in force wants it; without its weights a model is all that its folder's other files say."""
  model, outline = models.load(model_folder), models.outline(model_folder)
  hosts, shapes = jax.tree.leaves(model.dit), lambda m: {name: x.shape for name, x in weights.names(m.dit).items()}
  assert all(isinstance(x, np.ndarray) and x.dtype == np.float32 for x in hosts)
  with sharding.use(sharding.MeshConfig(fsdp=2, tensor=2)):
    wanted = weights.abstract(lambda rngs: DiT(model.config.dit, rngs=rngs))
    for x, like, host in zip(*map(jax.tree.leaves, (model.laid_out(), wanted)), hosts, strict=True):
      assert x.sharding.spec == like.sharding.spec and np.array_equal(x, host)
  with sharding.default_mesh():
    assert all(np.array_equal(x, host) for x, host in zip(jax.tree.leaves(model.laid_out()), hosts, strict=True))
  assert shapes(outline) == shapes(model) and not any(hasattr(x, '__array__') for x in jax.tree.leaves(outline.dit))
  assert outline.config == model.config and outline.tokenizer.encode('a ball', 8) == model.tokenizer.encode('a ball', 8)


def test_guidance_of_one_is_no_guidance(model_folder):
  """The negative prompt then has no effect."""
  model = models.load(model_folder)
  a, b = (model.generate('a ball', guidance_scale=1.0, negative_prompt=n) for n in ('', 'something else'))
  assert np.array_equal(a.video, b.video) and np.array_equal(a.audio, b.audio)
  c, d = (model.generate('a ball', guidance_scale=4.0, negative_prompt=n) for n in ('', 'something else'))
  assert not np.array_equal(c.audio, d.audio)


@pytest.mark.parametrize('sampler', ['ddpm', 'ddim', 'euler', 'heun', 'dpmpp_2m'])
def test_every_sampler_generates(model_folder, sampler):
  assert np.isfinite(models.load(model_folder).generate('a ball', sampler=sampler).audio).all()


@pytest.mark.parametrize('options, words', [
    ({'num_frames': 0}, ['num_frames=0']),
    ({'fps': float('inf')}, ['fps=inf']),
    ({'fps': 1e-9}, ['fps=1e-09']),
    ({'seed': 2 ** 63}, [f'seed={2 ** 63}']),
    ({'first_index': -1}, ['first_index=-1']),
    ({'promt': 'a'}, ["'prompt'"]),
    ({'sampler': 'eular'}, ["'euler'"]),
    ({'sampler': 'xyz'}, ["'xyz'", 'ddim, ddpm']),
    ({'guidance_sacle': 2.0}, ['guidance_sacle', 'guidance_scale']),
    ({'num_inference_steps': 0}, ['num_inference_steps=0']),
    ({'guidance_rescale': 2.0}, ['guidance_rescale=2.0']),
])
def test_bad_options_are_named(model_folder, options, words):
  with pytest.raises(ValueError) as error:
    models.load(model_folder).generate('a ball', **options)
  assert all(word in str(error.value) for word in words)


def test_the_codecs_of_a_loaded_model_can_be_used_by_themselves(model_folder):
  model, video = models.load(model_folder), np.random.default_rng(0).integers(0, 256, (6, 18, 20, 3), np.uint8)
  model.generate('a ball')
  assert model.video_codec.decode(model.video_codec.encode(video), 6, 18, 20).shape == video.shape
  assert model.audio_codec.decode(model.audio_codec.encode(np.zeros((900, 2), np.float32)), 900).shape == (900, 2)
