"""Make-A-Video's parts one after another: pieces, given frames and noise, with networks that show what they were given."""
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from veojax import sharding
from veojax.data.tokenizer import Tokenizer
from veojax.generation import cascade, tasks
from veojax.generation.cascade import Cascade, CascadeConfig
from veojax.models import weights
from veojax.models.text import TextConfig
from veojax.zoo import make_a_video, make_a_video_prior
from veojax.zoo.make_a_video import CascadeSettings, PartConfig
from veojax.zoo.make_a_video_prior import Embedder, EmbedderConfig
from veojax.zoo.make_a_video_unet import UNetConfig

UNET = UNetConfig(widths=(8,), attention=(True,), depth=1, head_dim=8, groups=4, condition_dim=6)
LARGE = dataclasses.replace(UNET, attention=(False,), condition_dim=8, given_channels=3)
CONFIG = CascadeConfig(
    EmbedderConfig(embedding_dim=6, widths=(8,), groups=4, prior_width=8, prior_depth=1, prior_head_dim=8,
                   text=TextConfig(vocab_size=400, width=8, depth=1, num_heads=2, mlp_width=8)),
    PartConfig('decoder', UNET, 3, 4, 4),
    PartConfig('interpolation', dataclasses.replace(UNET, given_channels=4), 5, 4, 4, 2),
    (PartConfig('super_resolution', LARGE, 4, 8, 8, 2), PartConfig('super_resolution', LARGE, 1, 16, 16, 2)),
    max_text=24, settings=CascadeSettings(num_inference_steps=2, prior_steps=2, rows=3))


@pytest.fixture(scope='module')
def tokenizer(tmp_path_factory):
  return Tokenizer.train(['a red ball falls', 'a blue square'], tmp_path_factory.mktemp('text') / 'text.model', 300)


@pytest.fixture
def calls(monkeypatch):
  """What was asked of the networks. Each makes of a piece its noise in [-1, 1], with the first of its condition added."""
  asked = []

  def sample(network, noise, given, condition_BE, fps_B, levels, scale, key_B, objective, sampler, guided):
    asked.append({'part': network, 'noise': np.asarray(noise), 'given': None if given is None else np.asarray(given),
                  'fps': np.asarray(fps_B), 'guided': guided, 'keys': np.asarray(jax.random.key_data(key_B))})
    return jnp.tanh(jnp.asarray(noise) + np.asarray(condition_BE)[:, :1, None, None, None])
  monkeypatch.setattr(make_a_video, 'sample', sample)
  monkeypatch.setattr(make_a_video_prior, 'sample', lambda embedder, ids, noise, *rest: jnp.asarray(noise))
  monkeypatch.setattr(Cascade, 'module', lambda self, name: name)
  return asked


def test_a_cascade_prints_the_tree_of_all_parts_and_reads_none(tokenizer, tmp_path):
  model = Cascade(CONFIG, tokenizer, tmp_path / 'nothing is here', name='runs/mine')
  first, *lines = repr(model).split('\n')
  assert first == "Cascade 'runs/mine'"
  parts = [line.split('  ')[0] for line in lines if line[0] not in '├└│ ']
  assert parts == ['embedder', 'decoder', 'interpolation', 'super_resolution_0', 'super_resolution_1']
  num = sum(len(weights.names(model.shapes(name))) for name in parts)
  assert sum('float32[' in line for line in lines) == num


def generate(model, prompts, **options):
  with sharding.use(sharding.MeshConfig(), jax.devices()[:1]):
    return model.generate(prompts, **options)


def test_a_clip_passes_through_all_parts(calls, tokenizer):
  model = Cascade(CONFIG, tokenizer)
  one, two = generate(model, ['a red ball', 'a blue square'], seed=1)
  assert one.video.shape == two.video.shape == (5, 16, 16, 3) and one.fps == 8.0 and one.audio is None
  assert [call['part'] for call in calls] == ['decoder', 'interpolation', *['super_resolution_0'] * 2,
                                              *['super_resolution_1'] * 4]
  assert [float(call['fps'][0]) for call in calls] == [4.0] + [8.0] * 7
  assert [call['guided'] for call in calls] == [True] * 2 + [False] * 6
  for index, expected in enumerate((one, two)):  # whatever clips are made beside it
    alone = generate(model, expected.text, seed=1, first_index=index)
    np.testing.assert_array_equal(alone.video, expected.video)
    assert alone.info == expected.info
  assert np.abs(one.video.astype(int) - two.video).max() > 50
  other = generate(model, 'a red ball', seed=2)
  assert np.abs(other.video.astype(int) - one.video).max() > 50


def test_what_evaluation_asks_of_it(tokenizer):
  model = Cascade(CONFIG, tokenizer, modules={
      name: nnx.Dict(x=jnp.ones(2)) for name in (cascade.EMBEDDER, *CONFIG.parts)})
  assert model.clip_sizes == {'num_frames': 5, 'height': 16, 'width': 16, 'fps': 8.0}
  settings = model.sampling({'num_inference_steps': 3, 'sampler': 'heun'})
  assert model.network_calls(settings) == 2 + 2 * 3 * (2 + 2 + 1 + 1)
  assert model.network_calls(model.sampling({'guidance_scale': 1.0})) == 2 + 2 * (1 + 1 + 1 + 1)
  other = Cascade(CONFIG, tokenizer, modules={**model._modules, 'decoder': nnx.Dict(x=jnp.zeros(2))})
  larger = Cascade(dataclasses.replace(CONFIG, fps=5.0), tokenizer, modules=model._modules)
  assert len({model.fingerprint, other.fingerprint, larger.fingerprint}) == 3
  assert Cascade(CONFIG, tokenizer, modules=model._modules).fingerprint == model.fingerprint
  with pytest.raises(ValueError, match='of a text alone'):
    model.generate(['a red ball'], given=[tasks.Given(image=np.zeros((16, 16, 3), np.uint8))])


def test_given_frames_come_back_and_pieces_meet(calls, tokenizer):
  """Of 5 given frames 9: pieces of 5 that share a given frame; of 4, the last of them moved back to fit."""
  model, x = Cascade(CONFIG, tokenizer), np.random.default_rng(0).uniform(-1, 1, (2, 4, 4, 4, 3)).astype(np.float32)
  with sharding.use(sharding.MeshConfig(), jax.devices()[:1]):
    making = cascade._Making(model, CONFIG.settings, jax.random.split(jax.random.key(0), 2), 4.0)
    made = making.interpolated(x, np.zeros((2, 6), np.float32))
  assert made.shape == (2, 7, 4, 4, 3)
  np.testing.assert_array_equal(made[:, ::2], x)
  np.testing.assert_allclose(made[:, 1::2], np.tanh(making_noise(making, 2, (7, 4, 4, 3)))[:, 1::2], atol=1e-6)
  given = np.concatenate([call['given'] for call in calls])[[0, 1, 2, 3]]
  for piece, (clip, start) in zip(given, [(0, 0), (1, 0), (0, 1), (1, 1)]):
    np.testing.assert_array_equal(piece[::2, ..., :3], x[clip, start:start + 3])
    np.testing.assert_array_equal(piece[..., 3], np.broadcast_to(np.array([1, 0, 1, 0, 1])[:, None, None], (5, 4, 4)))
    assert not piece[1::2, ..., :3].any()


def making_noise(making, number, shape):
  with sharding.use(sharding.MeshConfig(), jax.devices()[:1]):
    return making.noise(number, shape)


def test_frames_enlarged_alone_have_one_noise_and_clips_their_own(calls, tokenizer):
  model, x = Cascade(CONFIG, tokenizer), np.zeros((2, 6, 8, 8, 3), np.float32)
  settings = dataclasses.replace(CONFIG.settings, given_noise=0.3)
  space_time, space = CONFIG.super_resolution
  with sharding.use(sharding.MeshConfig(), jax.devices()[:1]):
    making = cascade._Making(model, settings, jax.random.split(jax.random.key(0), 2), 4.0)
    large = making.larger(x, 'super_resolution_1', space, 5)
    given = np.concatenate([call['given'] for call in calls])
    keys = np.concatenate([call['keys'] for call in calls])
    calls.clear()
    of_clip = making.larger(x[:, :, :4, :4], 'super_resolution_0', space_time, 3)
  assert large.shape == (2, 6, 16, 16, 3) and given.shape == (12, 1, 16, 16, 3)
  np.testing.assert_array_equal(large, np.broadcast_to(large[:, :1], large.shape))
  np.testing.assert_array_equal(given[::2], np.broadcast_to(given[:1], (6, 1, 16, 16, 3)))  # and the noise in what is given
  assert np.abs(given[0] - given[1]).max() > 0.1 and np.abs(large[0] - large[1]).max() > 0.1
  assert len(np.unique(keys, axis=0)) == 2
  # Over space and time every frame has a noise of its own, the same in every piece that holds it.
  assert of_clip.shape == (2, 6, 8, 8, 3) and np.abs(of_clip[:, 0] - of_clip[:, 1]).max() > 0.1
  pieces = np.concatenate([call['noise'] for call in calls])
  np.testing.assert_array_equal(pieces[0, 2:], pieces[2, :2])


def test_the_prior_is_laid_out_over_a_mesh():
  """Shapes and layouts alone."""
  with sharding.use(sharding.MeshConfig(data=2, fsdp=2, tensor=2)):
    embedder = weights.abstract(lambda rngs: Embedder(CONFIG.embedder, rngs=rngs))
    made = jax.eval_shape(lambda embedder, ids, noise: make_a_video_prior.sample(embedder, ids, noise, 2.0, 3, 'float32'),
                          embedder, jax.ShapeDtypeStruct((4, 24), jnp.int32), jax.ShapeDtypeStruct((4, 6), jnp.float32))
  assert made.shape == (4, 6) and made.sharding.spec[0] == sharding.ROWS


def test_what_a_model_cannot_make_is_refused(tokenizer):
  model = Cascade(CONFIG, tokenizer)
  pictures = Cascade(dataclasses.replace(CONFIG, decoder=PartConfig('decoder', UNET, 1, 4, 4), interpolation=None),
                     tokenizer)
  for made, options, message in ((model, {'height': 24}, 'makes 16x16'), (model, {'guidance_scal': 2.0}, 'guidance_scale'),
                                 (model, {'fps': -1.0}, 'positive'), (model, {'rows': 0}, 'rows=0'),
                                 (pictures, {'num_frames': 3}, 'only pictures')):
    with pytest.raises(ValueError, match=message):
      made.generate('a ball', **options)
  with pytest.raises(ValueError, match='no prompt'):
    model.generate('')
  assert model.info()['sizes'] == '5 frames of 16 × 16' and pictures.info()['tasks'] == 'text to image'
