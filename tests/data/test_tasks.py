"""Tasks in training: every mixture gives what it says, and something is always left to make."""
import numpy as np
import pytest

from veojax.data import packing, tasks
from veojax.data.latent_clip import LatentClip, Still
from veojax.data.packing import PackConfig
from veojax.data.tasks import TaskConfig
from veojax.types import AUDIO, GIVEN, VIDEO

NAMES = tuple(vars(TaskConfig()))


def clip(frames=5, sound=20, stills=2):
  rng = np.random.default_rng(0)
  return LatentClip(
      video=rng.normal(size=(frames, 3, 4, 4)).astype('f'), audio=rng.normal(size=(sound, 6)).astype('f') if sound else None,
      text_ids=(1, 2), fps=8.0, height=24, width=32, temporal_compression=4, spatial_compression=8, latent_rate=10.0,
      stills=tuple(Still(rng.normal(size=(3, 4, 4)).astype('f'), t / 8) for t in (16, 7)[:stills]) if frames > 1 else ())


def only(name):
  return TaskConfig(**{'generate': 0.0, name: 1.0})


def given_share(c):
  cells = [] if c.video is None else [np.ravel(np.zeros(c.video.shape[:3]) if c.video_given is None else c.video_given)]
  sound = [] if c.audio is None else [np.zeros(len(c.audio)) if c.audio_given is None else c.audio_given]
  return np.concatenate(cells + sound).mean()


@pytest.mark.parametrize('name', NAMES)
def test_something_is_left_to_make_whatever_is_given(name):
  for seed in range(40):
    drawn = tasks.draw(clip(), only(name), np.random.default_rng(seed))
    assert given_share(drawn) < 1
    row = packing.pack([drawn], PackConfig(row_tokens=160, text_tokens=8, max_clips=1, max_text=8, channels=6,
                                           groups_per_clip=16))
    video, audio = packing.unpack(row, 1, drawn.video.shape if drawn.video is not None else None,
                                  drawn.audio.shape if drawn.audio is not None else None)
    if video is not None:
      np.testing.assert_array_equal(video, drawn.video)
    if audio is not None:
      np.testing.assert_array_equal(audio, drawn.audio)
    is_given = row.group_level[row.group] == GIVEN
    media = (row.segment == 1) & (row.modality > 1)
    count = sum(s.latent.shape[0] * s.latent.shape[1] for s in drawn.stills)
    cells = media.sum() - count
    assert is_given[media].sum() == count + round(given_share(drawn) * cells)


def test_what_each_task_gives():
  draw = lambda name, seed=0: tasks.draw(clip(), only(name), np.random.default_rng(seed))
  assert given_share(draw('generate')) == 0 and draw('generate').stills == ()
  image = draw('image')
  assert image.video.shape[0] == 1 and image.audio is None
  assert draw('sound').video is None
  first = draw('first_frame')
  assert first.video_given[0].all() and not first.video_given[1:].any() and first.audio_given is None
  assert draw('soundtrack').video_given.all() and draw('soundtrack').audio_given is None
  assert draw('picture').audio_given.all() and draw('picture').video_given is None
  assert [s.time for s in draw('last_frame').stills] == [2.0]
  assert draw('reference').stills[0].time < 0
  for seed in range(20):
    extended = draw('extend', seed)
    frames = extended.video_given.all((1, 2)).sum()
    assert extended.video_given[:frames].all() and not extended.video_given[frames:].any() and 1 <= frames <= 4
    seconds = (4 * (frames - 1) + 1) / 8
    assert extended.audio_given.sum() == int(seconds * 10 + 1e-6) and np.all(np.diff(extended.audio_given.astype(int)) <= 0)


def test_forcing_gives_every_latent_frame_and_the_sound_beside_it_a_time_of_its_own():
  row = packing.pack([tasks.draw(clip(), only('forcing'), np.random.default_rng(0))],
                     PackConfig(row_tokens=96, text_tokens=8, max_clips=1, max_text=8, channels=6, groups_per_clip=12))
  level = row.group_level[row.group]
  for frame in range(5):
    start, end = max(0, 4 * frame - 4) / 8, 4 * frame / 8
    video = (row.modality == VIDEO) & (np.abs(row.position[:, 0] - (start + end) / 2) < 1e-6)
    sound = (row.modality == 2) & (row.position[:, 0] > start) & (row.position[:, 0] < end)
    assert len(set(level[video])) == 1 and set(level[sound]) <= set(level[video])
  assert len(set(level[row.modality == VIDEO])) == 5
  with pytest.raises(ValueError, match='groups_per_clip'):
    packing.pack([clip(stills=0)._replace(frame_levels=True)],
                 PackConfig(row_tokens=96, text_tokens=8, max_clips=1, max_text=8, channels=6))


def test_stream_gives_windows_whose_tokens_stand_where_they_stand_in_the_clip():
  """Up to the window's own time 0: the same latents, places and neighbours, from anywhere in the clip."""
  config = PackConfig(row_tokens=96, text_tokens=8, max_clips=1, max_text=8, channels=6, groups_per_clip=14)
  whole = packing.pack([clip(stills=0)._replace(frame_levels=True)], config)
  firsts, shares = set(), []
  for seed in range(60):
    drawn = tasks.draw(clip(), only('stream'), np.random.default_rng(seed))
    row = packing.pack([drawn], config)
    for modality, latent in ((AUDIO, drawn.audio), (VIDEO, drawn.video)):
      mine, all_ = row.modality == modality, whole.modality == modality
      at = (drawn.first * 12 if modality == VIDEO else drawn.first_sound) + np.arange(mine.sum())
      np.testing.assert_array_equal(row.latent[mine], whole.latent[all_][at])
      np.testing.assert_array_equal(row.extent[mine], whole.extent[all_][at])
      np.testing.assert_allclose(row.position[mine] + [drawn.start, 0, 0], whole.position[all_][at], atol=1e-6)
    level, before = row.group_level[row.group], whole.group_level[whole.group]
    frames = level[row.modality == VIDEO][::12]
    given = (frames == GIVEN).sum()
    assert (frames[:given] == GIVEN).all() and frames[given:].tolist() == list(range(given, len(frames)))
    sound = level[row.modality == AUDIO]
    want = before[whole.modality == AUDIO][drawn.first_sound:][:len(sound)] - drawn.first
    np.testing.assert_array_equal(sound, np.where(want < given, GIVEN, want))
    firsts.add(drawn.first)
    shares.append(given / len(frames))
  assert firsts == set(range(5)) and 0 < np.mean(shares) < 0.5


def test_the_mixture_is_drawn_as_its_weights_say():
  config = TaskConfig(generate=1.0, soundtrack=3.0)
  drawn = [tasks.draw(clip(), config, np.random.default_rng(i)).video_given is not None for i in range(600)]
  assert abs(np.mean(drawn) - 0.75) < 0.06


def test_what_a_clip_cannot_do_is_generated():
  still = clip(frames=1, sound=0)
  for name in set(NAMES) - {'inpaint'}:
    drawn = tasks.draw(still, only(name), np.random.default_rng(0))
    assert given_share(drawn) == 0 and drawn.video.shape == still.video.shape


def test_stills_are_the_last_frame_and_others_fixed_by_the_clips_number():
  assert tasks.still_frames(3, 17, 2)[0] == 16 and 0 < tasks.still_frames(3, 17, 2)[1] < 16
  assert tasks.still_frames(3, 17, 2).tolist() == tasks.still_frames(3, 17, 2).tolist()
  assert len({tasks.still_frames(i, 17, 2)[1] for i in range(20)}) > 5
  assert not len(tasks.still_frames(0, 1, 2)) and not len(tasks.still_frames(0, 9, 0))


def test_bad_weights_are_refused():
  with pytest.raises(ValueError, match='tasks.extend=-1'):
    TaskConfig(extend=-1)
  with pytest.raises(ValueError, match='all weights are 0'):
    TaskConfig(generate=0.0)
