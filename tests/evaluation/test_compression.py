"""The compression study: every variant is a run whose codec can be made."""
import numpy as np
import pytest

from veojax.evaluation import compression
from veojax.models import weights
from veojax.models.video_codec import VideoCodec
from veojax.models.video_vae import VideoVAE


@pytest.mark.parametrize('name', compression.VARIANTS)
def test_every_variant_makes_a_codec_of_its_compression(name):
  temporal, spatial, channels, _ = compression.VARIANTS[name]
  run = compression.variant(name, 'data', 7)
  assert run.loop.num_steps == 7 and run.data == 'data'
  vae = weights.abstract(lambda rngs: VideoVAE(run.model, rngs=rngs))
  statistics = np.zeros(channels, np.float32), np.ones(channels, np.float32)
  codec = VideoCodec(vae, *statistics, tile=run.tile, overlap=run.overlap)
  assert codec.latent_shape(33, 64, 64) == (1 + 32 // temporal, 64 // spatial, 64 // spatial, channels)
