import numpy as np
import pytest

from veojax.data import latent_clip, packing, row_plan
from veojax.data.latent_clip import LatentClip
from veojax.data.packing import PackConfig
from veojax.types import PADDING, TEXT, VIDEO

CONFIG = PackConfig(row_tokens=512, text_tokens=64, max_clips=8, max_text=16, channels=6)


def lengths_of(n, low=20, high=400, seed=0):
  rng = np.random.default_rng(seed)
  return np.stack([rng.integers(low, high + 1, n), rng.integers(2, 17, n)], 1)


def clip(rng, t=3, h=2, w=4, sound=5, text=3, **kwargs):
  """33 x 62 pixels at 12 fps through a codec of 4 x 16 x 16."""
  return LatentClip(
      video=rng.normal(size=(t, h, w, 4)).astype(np.float32) if t else None,
      audio=rng.normal(size=(sound, 6)).astype(np.float32) if sound else None,
      text_ids=rng.integers(3, 90, text).tolist(), fps=12.0, height=33, width=62, temporal_compression=4,
      spatial_compression=16, latent_rate=25.0, **kwargs)


@pytest.mark.parametrize('n', [1, 2, 22, 1000])
def test_every_epoch_has_every_clip_once_in_the_same_number_of_rows(n):
  lengths = lengths_of(n)
  num_rows = row_plan.num_rows(lengths, CONFIG, seed=3)
  for epoch in range(12):
    rows = row_plan.plan(lengths, CONFIG, 3, epoch, num_rows)
    assert len(rows) == num_rows
    assert sorted(i for r in range(len(rows)) for i in rows[r]) == list(range(n))
    for r in range(len(rows)):
      tokens, text = lengths[rows[r]].sum(0)
      assert 0 < tokens <= CONFIG.row_tokens and text <= CONFIG.text_tokens and len(rows[r]) <= CONFIG.max_clips


def test_plan_is_a_pure_function_of_seed_and_epoch():
  lengths = lengths_of(200)
  again = [row_plan.plan(lengths, CONFIG, seed, epoch).clips for seed, epoch in ((0, 5), (0, 5), (0, 6), (1, 5))]
  np.testing.assert_array_equal(again[0], again[1])
  assert not np.array_equal(again[0], again[2]) and not np.array_equal(again[0], again[3])


def test_clips_meet_others_in_every_epoch():
  lengths = lengths_of(300)
  rows = [row_plan.plan(lengths, CONFIG, 0, epoch) for epoch in range(2)]
  pairs = [{(a, b) for r in range(len(p)) for a in p[r] for b in p[r] if a < b} for p in rows]
  assert len(pairs[0] & pairs[1]) < 0.1 * len(pairs[0])


def test_rows_are_full():
  lengths = lengths_of(4000, low=64, high=4096)
  config = PackConfig(row_tokens=8192, text_tokens=2048, max_clips=64)
  assert lengths[:, 0].sum() / (row_plan.num_rows(lengths, config, 0) * config.row_tokens) > 0.97


def test_rows_are_full_where_text_runs_short():
  """Images with long captions between clips: their text fits only where few of them share a row."""
  rng = np.random.default_rng(0)
  text, rest = rng.integers(18, 56, 4000), np.where(rng.random(4000) < 0.4, 40, rng.integers(150, 600, 4000))
  lengths = np.stack([rest + text, text], 1)
  config = PackConfig(row_tokens=1024, text_tokens=256, max_clips=16, max_text=56)
  assert lengths[:, 0].sum() / (row_plan.num_rows(lengths, config, 0) * config.row_tokens) > 0.96


def test_an_epoch_of_other_clips_within_the_bound_keeps_the_number_of_rows():
  bound = lengths_of(90, low=200, high=360)
  num_rows = row_plan.num_rows(bound, CONFIG, 1)
  rng = np.random.default_rng(0)
  for epoch in range(20):
    lengths = bound - np.stack([rng.integers(0, 9, 90)] * 2, 1) * (bound[:, 1:] > 9)
    rows = row_plan.plan(lengths, CONFIG, 1, epoch, num_rows, bound)
    assert len(rows) == num_rows and sorted(rows.clips) == list(range(90))
    assert all((lengths[rows[r]].sum(0) <= (CONFIG.row_tokens, CONFIG.text_tokens)).all() for r in range(num_rows))


def test_an_epoch_that_packs_badly_falls_back_on_the_promised_number():
  lengths = lengths_of(60, low=150, high=360)
  counts = [len(row_plan._fewest(lengths, CONFIG, 0, epoch, 0)) for epoch in range(40)]
  assert max(counts[1:]) > counts[0]
  needed = counts[0]
  for epoch in range(40):
    rows = row_plan.plan(lengths, CONFIG, 0, epoch, needed)
    assert len(rows) == needed and sorted(rows.clips) == list(range(60))


@pytest.mark.parametrize('lengths', [
    np.zeros((0, 2), int), np.array([[513, 3]]), np.array([[100, 65]]), np.array([[0, 0]])])
def test_what_cannot_be_packed_is_refused(lengths):
  with pytest.raises(ValueError, match='prepare'):
    row_plan.num_rows(lengths, CONFIG, 0)


def test_config_refuses_captions_longer_than_the_row():
  with pytest.raises(ValueError, match='max_text'):
    PackConfig(text_tokens=16, max_text=17)
  with pytest.raises(ValueError, match='at least 1'):
    PackConfig(max_clips=0)


def test_pack_then_unpack_is_the_identity():
  rng = np.random.default_rng(0)
  clips = [clip(rng), clip(rng, t=0), clip(rng, sound=0, t=1), clip(rng, text=0)]
  row = packing.pack(clips, CONFIG)
  for segment, c in enumerate(clips, 1):
    video, audio = packing.unpack(row, segment, None if c.video is None else c.video.shape,
                                  None if c.audio is None else c.audio.shape)
    for got, want in ((video, c.video), (audio, c.audio)):
      assert (got is None) == (want is None)
      if want is not None:
        np.testing.assert_array_equal(got, want)
    mine = (row.segment == segment) & (row.modality == TEXT)
    assert row.text[row.text_index[mine]].tolist() == list(c.text_ids)
    assert (row.text_segment[row.text_index[mine]] == segment).all()


def test_groups_say_segment_and_modality_of_their_tokens():
  rng = np.random.default_rng(1)
  row = packing.pack([clip(rng), clip(rng, sound=0)], CONFIG)
  assert len(row.group_modality) == CONFIG.num_groups
  np.testing.assert_array_equal(row.group_modality[row.group], row.modality)
  np.testing.assert_array_equal(row.group_segment[row.group], row.segment)
  unused = np.setdiff1d(np.arange(CONFIG.num_groups), row.group)
  assert not row.group_segment[unused].any() and not row.group_modality[unused].any()
  order = row.segment.astype(int) * 10 + row.modality
  used = row.segment > 0
  assert (np.diff(order[used]) >= 0).all() and used[:used.sum()].all()


def test_padding_is_zero():
  row = packing.pack([clip(np.random.default_rng(2))], CONFIG)
  padding = row.modality == PADDING
  for field in ('latent', 'segment', 'position', 'extent', 'group', 'text_index'):
    assert not getattr(row, field)[padding].any()
  assert not row.text[row.text_segment == 0].any()
  assert not row.latent[row.modality == TEXT].any() and not row.latent[row.modality == VIDEO][:, 4:].any()


def test_picture_cells_cover_the_clip_without_gap_in_time_and_are_centred_in_space():
  position, extent = packing.video_geometry((4, 4, 6), 12.0, 32, 48, 4, 8)
  position, extent = position.reshape(4, 4, 6, 3), extent.reshape(4, 4, 6, 3)
  start, end = (position[:, 0, 0, 0] + sign * extent[:, 0, 0, 0] / 2 for sign in (-1, 1))
  np.testing.assert_allclose(start[1:], end[:-1], rtol=1e-5)
  np.testing.assert_allclose([start[0], end[0], end[-1]], [0, 0, 12 / 12], atol=1e-6)  # the last frame is number 12
  np.testing.assert_allclose(position[..., 1:].mean((0, 1, 2)), 0, atol=1e-6)
  np.testing.assert_allclose(extent[0, :, 0, 1].sum() * extent[0, 0, :, 2].sum(), 1, rtol=1e-5)  # area of a frame
  np.testing.assert_allclose(np.diff(position[0, :, 0, 1]), extent[0, 0, 0, 1], rtol=1e-5)
  np.testing.assert_allclose(extent[..., 1], extent[..., 2])  # isotropic


def intervals(frames, fps, height, width, spatial_compression=8):
  """Start and end of each cell in (t, y, x): float[2, t, h, w, 3]."""
  shape = (1 + (frames - 1) // 4, height // spatial_compression, width // spatial_compression)
  position, extent = packing.video_geometry(shape, fps, height, width, 4, spatial_compression)
  return np.stack([position - extent / 2, position + extent / 2]).reshape(2, *shape, 3)


@pytest.mark.parametrize('frames, fps', [(9, 12.0), (33, 24.0), (17, 8.0)])
def test_what_is_shown_has_the_same_time_at_twice_the_frame_rate(frames, fps):
  """Frame j shows the state at j / fps, as frame 2 j of twice the rate does; both lie in cells that hold that time."""
  slow, fast = intervals(frames, fps, 32, 48), intervals(2 * frames - 1, 2 * fps, 32, 48)
  np.testing.assert_allclose(slow[:, 0], fast[:, 0], atol=1e-6)  # the first frame, and so a still image
  np.testing.assert_allclose(slow[0, 1:], fast[0, 1::2], atol=1e-5)
  np.testing.assert_allclose(slow[1, 1:], fast[1, 2::2], atol=1e-5)
  for times, rate, step in ((slow, fps, 1), (fast, 2 * fps, 2)):
    for j in range(0, step * (frames - 1) + 1, step):
      start, end = times[:, -(-j // 4), 0, 0, 0]
      assert start - 1e-5 <= j / rate <= end + 1e-5


@pytest.mark.parametrize('height, width', [(32, 32), (32, 48), (48, 32), (64, 16)])
def test_what_is_shown_has_the_same_place_at_twice_the_resolution(height, width):
  small, large = intervals(9, 12.0, height, width), intervals(9, 12.0, 2 * height, 2 * width)
  np.testing.assert_allclose(small[0], large[0][:, ::2, ::2], atol=1e-6)
  np.testing.assert_allclose(small[1], large[1][:, 1::2, 1::2], atol=1e-6)


def test_shapes_keep_their_form_across_aspect_ratios():
  """A square of pixels is a square of space, and the frame is centred with an area of 1, in every frame."""
  for height, width in ((32, 32), (32, 64), (64, 32), (40, 88)):
    start, end = intervals(5, 12.0, height, width)
    np.testing.assert_allclose((end - start)[..., 1], (end - start)[..., 2], rtol=1e-5)
    np.testing.assert_allclose(end[-1, -1, -1, 1:] * np.sqrt(height * width), [height / 2, width / 2], rtol=1e-6)
    np.testing.assert_allclose(start[0, 0, 0, 1:], -end[-1, -1, -1, 1:], rtol=1e-6)


def test_sound_runs_on_the_clock_of_the_picture_and_fills_the_frame():
  position, extent = packing.audio_geometry(25, 25.0, 32, 48)
  start, end = position[:, 0] - extent[:, 0] / 2, position[:, 0] + extent[:, 0] / 2
  np.testing.assert_allclose([start[0], end[-1]], [0, 1], atol=1e-6)
  np.testing.assert_allclose(extent[:, 1] * extent[:, 2], 1, rtol=1e-6)
  np.testing.assert_allclose(packing.audio_geometry(3, 25.0, 0, 0)[1][:, 1:], 1)


def test_too_many_clips_or_channels_are_refused():
  rng = np.random.default_rng(3)
  with pytest.raises(ValueError, match='max_clips'):
    packing.pack([clip(rng, t=0)] * 9, CONFIG)
  with pytest.raises(ValueError, match='channels'):
    packing.pack([clip(rng)], PackConfig(row_tokens=512, channels=5))
  with pytest.raises(ValueError, match='segment 2'):
    packing.unpack(packing.pack([clip(rng)], CONFIG), 2, video_shape=(3, 2, 4, 4))


@pytest.mark.parametrize('room', [12, 13, 17, 20, 36])
def test_cut_keeps_the_beginning_of_picture_and_sound_together(room):
  c = clip(np.random.default_rng(4), t=4, sound=29)  # 13 frames at 12 fps; 29 sound latents at 25 a second
  part = latent_clip.cut(c, room)
  assert part.num_tokens <= room and part.text_ids == c.text_ids
  kept = len(part.video)
  np.testing.assert_array_equal(part.video, c.video[:kept])
  np.testing.assert_array_equal(part.audio, c.audio[:len(part.audio)])
  assert len(part.audio) / 25 <= (4 * (kept - 1) + 1) / 12 + 1 / 25


def test_cut_leaves_what_fits_and_refuses_what_never_can():
  c = clip(np.random.default_rng(5))
  assert latent_clip.cut(c, c.num_tokens) is c
  assert latent_clip.cut(clip(np.random.default_rng(5), t=0), 6).num_tokens == 6
  with pytest.raises(ValueError, match='row_tokens'):
    latent_clip.cut(c, 9)
