"""A file becomes clips: whole, by scene, by length; read once or span by span, the clips are the same."""
import pathlib

import numpy as np
import pytest

from veojax.data import datasets, media, pieces, sources
from veojax.data.prepare import PrepareConfig
from veojax.types import Clip

FPS, RATE = 20.0, 8000
KEEP = dict(crf=1)


def film(lengths=(20, 24), height=32, width=48, sound=True):
  """One shot after another, each a colour of its own with a moving bar; each shot has its own tone."""
  frames, tones = [], []
  for shot, length in enumerate(lengths):
    colour = np.array([(220, 40, 40), (30, 60, 200), (40, 200, 60), (230, 230, 230)][shot % 4])
    for t in range(length):
      frame = np.ones((height, width, 1)) * colour
      frame[:, (2 * t) % width:(2 * t) % width + 4] = 0
      frames.append(frame)
    time = np.arange(round(length / FPS * RATE)) / RATE
    tones.append(0.3 * np.sin(2 * np.pi * 250 * (shot + 1) * time))
  audio = np.concatenate(tones).astype(np.float32)[:, None] if sound else None
  return Clip(video=np.asarray(frames, np.uint8), audio=audio, fps=FPS, sample_rate=RATE if sound else 0)


@pytest.fixture
def made(tmp_path):
  """Function: config, clip (or the name of a file that is there) → (clips of its piece, what the piece says)."""
  folder = tmp_path / 'source'
  folder.mkdir()
  def make(clip, name='film.mp4', **config):
    if clip is not None:
      media.write(folder / name, clip, **(KEEP if name.endswith('mp4') else {}))
    entry = next(entry for entry in sources.list_folder(folder).entries if entry.name == name)
    path = str(tmp_path / entry.key)
    summary = pieces.prepare(pieces.FileTask(entry, PrepareConfig(**config), path))
    assert pieces.load(path) == summary
    content, clips = pathlib.Path(path + '.examples').read_bytes(), []
    for row in summary['clips']:
      record, content = content[:row['bytes']], content[row['bytes']:]
      clips.append(datasets.deserialize(record))
      assert datasets.sizes(clips[-1]) == pytest.approx({key: row[key] for key in datasets.INDEX})
    assert not content
    return clips, summary
  make.folder = folder
  return make


@pytest.mark.parametrize('whole_bytes', [1 << 30, 0])
def test_a_film_is_cut_at_its_scenes_with_its_sound(made, monkeypatch, whole_bytes):
  monkeypatch.setattr(pieces, 'WHOLE_BYTES', whole_bytes)
  clips, summary = made(film())
  assert [len(clip.video) for clip in clips] == [20, 24] and not summary['rejected']
  for shot, clip in enumerate(clips):
    assert clip.info['start'] == pytest.approx(shot * 20 / FPS)
    assert abs(len(clip.audio) / RATE - len(clip.video) / FPS) < 0.5 / FPS
    middle = clip.audio[len(clip.audio) // 4:-len(clip.audio) // 4, 0]
    peak = np.abs(np.fft.rfft(middle)).argmax() * RATE / len(middle)
    assert abs(peak - 250 * (shot + 1)) < 25


def test_reading_span_by_span_is_reading_whole(made, monkeypatch):
  config = dict(max_seconds=0.7, min_seconds=0.1, fps=10.0, max_side=24)
  whole, _ = made(film((20, 24, 17)), **config)
  monkeypatch.setattr(pieces, 'WHOLE_BYTES', 0)
  spans, _ = made(None, **config)
  assert len(whole) == len(spans) == 6
  for one, other in zip(whole, spans):
    # A span may begin half a frame of the clip's rate off the grid of the whole.
    assert abs(len(one.video) - len(other.video)) <= 1 and one.video.shape[1:] == other.video.shape[1:] == (16, 24, 3)
    length = min(len(one.video), len(other.video))
    assert np.median(np.abs(one.video[:length].astype(int) - other.video[:length])) < 8


def test_long_clips_are_cut_into_equal_parts(made):
  clips, _ = made(film((50,)), max_seconds=1.0, scene_threshold=0)
  assert sum(len(clip.video) for clip in clips) == 50
  assert max(len(clip.video) for clip in clips) <= FPS and len(clips) == 3


def test_sound_alone_and_images_alone(made):
  clips, summary = made(Clip(audio=film().audio, sample_rate=RATE), 'sound.wav', max_seconds=1.0)
  assert len(clips) == 3 and all(clip.video is None for clip in clips)
  assert sum(len(clip.audio) for clip in clips) == len(film().audio)
  assert ['without picture', 'sound.wav'] in summary['notes']
  clips, summary = made(Clip(video=film().video[:1], fps=24.0), 'image.png', min_seconds=5.0)
  np.testing.assert_array_equal(clips[0].video, film().video[:1])
  assert summary['notes'] == [['without sound', 'image.png']]


def test_what_is_too_short_is_rejected_by_its_place(made):
  clips, summary = made(film((30, 6)), min_seconds=0.5)
  assert [len(clip.video) for clip in clips] == [30]
  assert summary['rejected'] == [['shorter than min_seconds=0.5', 'film.mp4 [1.50 to 1.80 s]']]
  clips, summary = made(None, min_seconds=5.0, max_seconds=10.0, scene_threshold=0)
  assert not clips and summary['rejected'][0][1] == 'film.mp4'


def test_a_sound_of_its_own_replaces_the_files(made):
  media.write(made.folder / 'other.wav', Clip(audio=np.full((4000, 2), 0.25, np.float32), sample_rate=RATE))
  (made.folder / 'metadata.jsonl').write_text('{"file_name": "film.mp4", "text": "x", "audio": "other.wav"}')
  [clip], _ = made(film((20,)), max_seconds=10.0)
  assert clip.audio.shape == (8000, 2)
  np.testing.assert_allclose(clip.audio[:4000], 0.25, atol=1e-3)
  assert not clip.audio[4000:].any()
  (made.folder / 'other.wav').write_bytes(b'RIFF nothing of the kind')
  clips, summary = made(None)
  assert not clips and 'other.wav' in summary['rejected'][0][1]


def test_compressed_keeps_the_file_where_nothing_is_changed(made, monkeypatch):
  kept = []
  monkeypatch.setattr(datasets, 'serialize', lambda id, clip, media, real=datasets.serialize:
                      kept.append(media) or real(id, clip, media))
  [clip], _ = made(film((20,)), store='compressed')
  assert kept == [(made.folder / 'film.mp4').read_bytes()] and len(clip.video) == 20
  assert np.abs(clip.video.astype(int) - film((20,)).video).mean() < 6
  [clip], _ = made(None, store='compressed', height=16, width=16)
  assert kept[1] != kept[0] and clip.video.shape == (20, 16, 16, 3) and clip.audio is not None
  clips, _ = made(film((20, 24)), store='compressed')
  assert [len(clip.video) for clip in clips] == [20, 24]


@pytest.mark.parametrize('damage', [b'', b'this is a text file, not a film', 'half', 'zeros'])
def test_a_damaged_file_is_rejected_by_name(made, damage):
  media.write(made.folder / 'film.mp4', film((60,)))
  whole = (made.folder / 'film.mp4').read_bytes()
  content = {'half': whole[:len(whole) // 2], 'zeros': bytes(len(whole))}.get(damage, damage) or b'\0'
  (made.folder / 'film.mp4').write_bytes(content)
  clips, summary = made(None)
  assert not clips and not summary['notes']
  [[reason, name]] = summary['rejected']
  assert reason == 'cannot be read' and name.startswith('film.mp4 (') and '\n' not in name


def test_an_output_that_cannot_be_written_is_no_fault_of_the_file(made, tmp_path):
  media.write(made.folder / 'film.mp4', film((20,)))
  [entry] = sources.list_folder(made.folder).entries
  with pytest.raises(pieces.OutputError, match='cannot write .*finished pieces are kept'):
    pieces.prepare(pieces.FileTask(entry, PrepareConfig(), str(tmp_path / 'nowhere' / 'piece')))
