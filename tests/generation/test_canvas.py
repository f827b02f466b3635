"""What is known of a clip becomes given cells and stills, never more than is known; pasting restores the rest."""
import numpy as np
import pytest

from veojax.data import tasks
from veojax.generation import canvas
from veojax.generation.canvas import Canvas
from veojax.types import Clip

TC, SC = 4, 8


class Codec:
  """Cells of mean colours: enough to see what the canvas asks of a codec."""
  temporal_compression, spatial_compression, latent_channels = TC, SC, 3

  def latent_shape(self, T, H, W):
    return 1 + -(-(T - 1) // TC), -(-H // SC), -(-W // SC), 3

  def encode(self, video):
    t, h, w, _ = self.latent_shape(*video.shape[:3])
    return np.stack([[[video[canvas.cell_frames(k, TC), i * SC:i * SC + SC, j * SC:j * SC + SC].mean((0, 1, 2))
                       for j in range(w)] for i in range(h)] for k in range(t)]).astype(np.float32)


class Sound:
  sample_rate, latent_rate, channels, latent_channels = 1000, 25.0, 2, 2

  def latent_length(self, n):
    return -(-n // 40)

  def encode(self, audio):
    return np.stack([audio[i:i + 40].mean(0) for i in range(0, len(audio), 40)])


def filled_canvas(frames=13, height=24, width=20):
  rng = np.random.default_rng(0)
  made = Canvas.empty((frames, height, width), 8.0, (round(frames / 8 * 1000), 2))
  return made, rng.integers(0, 256, (frames, height, width, 3), np.uint8), rng.normal(size=made.audio.shape).astype('f')


def test_a_cell_is_given_where_all_its_pixels_are_known_and_nothing_before_is_lost():
  rng = np.random.default_rng(1)
  for _ in range(50):
    seen = np.repeat(np.repeat(rng.random((13, 3, 3)) < 0.9, 8, 1), 8, 2)[:, :24, :20]
    seen[rng.integers(13) * (rng.random() < 0.5):][rng.random() < 0.5:] &= rng.random() < 0.7
    known = canvas.known_cells(seen, (4, 3, 3), TC, SC)
    lost = np.flatnonzero(~seen.any((1, 2)))
    for k in range(4):
      frames = canvas.cell_frames(k, TC)
      whole = not len(lost) or frames.stop <= lost[0]
      for i in range(3):
        for j in range(3):
          assert known[k, i, j] == (whole and seen[frames, i * SC:i * SC + SC, j * SC:j * SC + SC].all())


@pytest.mark.parametrize('known, stills', [
    ([], []), ([0], []), ([12], [12]), ([0, 12], [12]), (range(5), []), (range(7), [6]), (range(6, 13), [6, 10]),
    ([3, 9], [3, 9])])
def test_whole_frames_that_no_cell_holds_are_stills(known, stills):
  made, video, _ = filled_canvas()
  for frame in known:
    made.put_frames(frame, video[frame:frame + 1])
  cells = canvas.known_cells(made.seen, (4, 3, 3), TC, SC)
  assert canvas.loose_frames(made.seen, cells, TC) == stills
  latent = made.latents(Codec(), Sound())
  assert [round(still.time * 8) for still in latent.stills] == stills
  for still, frame in zip(latent.stills, stills):
    np.testing.assert_array_equal(still.latent, Codec().encode(video[frame:frame + 1])[0])


def test_unknown_latents_are_zero_and_known_ones_the_codecs():
  made, video, audio = filled_canvas()
  made.put_frames(0, video[:5])
  made.put_sound(0, audio[:500])
  latent = made.latents(Codec(), Sound())
  assert latent.video_given[:2].all() and not latent.video_given[2:].any()
  np.testing.assert_array_equal(latent.video[:2], Codec().encode(video[:5]))
  assert not latent.video[2:].any() and not latent.audio[12:].any()
  assert latent.audio_given.tolist() == [True] * 12 + [False] * (len(latent.audio) - 12)
  np.testing.assert_allclose(latent.audio[:12], Sound().encode(audio[:480]), rtol=1e-6)


def test_references_stand_outside_the_clips_time():
  made, video, _ = filled_canvas()
  made.references = (video[3],)
  (still,) = made.latents(Codec(), Sound()).stills
  assert still.time == tasks.REFERENCE_TIME < 0


def test_what_is_unknown_is_filled_with_the_nearest_that_is_known():
  made, video, _ = filled_canvas()
  made.put_frames(2, video[2:4])
  out = canvas.filled(made.video, made.seen)
  np.testing.assert_array_equal(out[:3], np.repeat(video[2:3], 3, 0))
  np.testing.assert_array_equal(out[3:], np.repeat(video[3:4], 10, 0))


def test_pasting_gives_back_what_was_given_but_for_the_seam():
  made, video, audio = filled_canvas()
  made.put_frames(0, video)
  made.put_sound(0, audio)
  made.seen[:, :10, :10] = False
  made.heard[600:] = False
  clip = Clip(video=255 - video, audio=-audio, fps=8.0, sample_rate=1000)
  made.paste(clip, 1000)
  far = np.ones(made.seen.shape, bool)
  far[:, :10 + canvas.FEATHER, :10 + canvas.FEATHER] = False
  np.testing.assert_array_equal(clip.video[far], video[far])
  np.testing.assert_array_equal(clip.video[~made.seen], 255 - video[~made.seen])
  np.testing.assert_array_equal(clip.audio[:590], audio[:590])
  np.testing.assert_array_equal(clip.audio[600:], -audio[600:])
  weight = canvas.inside(made.seen, canvas.FEATHER)
  assert (weight[~made.seen] == 0).all() and (weight[far] == 1).all() and ((weight > 0) & (weight < 1)).any()


def test_what_the_codec_gets_wrong_is_no_jump_in_time():
  made, video, _ = filled_canvas()
  video[:] = video[:1] // 2 + 20  # nothing moves
  made.put_frames(0, video[:4])
  made.put_frames(10, video[10:])
  clip = Clip(video=video + 20, fps=8.0)
  made.audio = None
  made.paste(clip, 0)
  np.testing.assert_array_equal(clip.video[:4], video[:4])
  np.testing.assert_array_equal(clip.video[10:], video[10:])
  away = (clip.video.astype(int) - video)[:, 0, 0, 0]
  assert away.tolist() == [0, 0, 0, 0, 4, 8, 8, 8, 8, 4, 0, 0, 0] and np.abs(np.diff(away)).max() <= 4


def test_what_does_not_fit_is_refused():
  made, video, _ = filled_canvas()
  with pytest.raises(ValueError, match='13 frames of 24x20 at frame 1 do not fit'):
    made.put_frames(1, video)
