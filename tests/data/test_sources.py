"""Every convention of captioned folders lists the same clips; what is left aside is named."""
import json
import os

import pytest

from veojax.data import sources

CAPTIONS = {'a.mp4': 'a red\u2028ball\x85that\x0bfalls', 'deep/b.wav': 'a, "loud" crash', 'c.png': 'ein Bäll\nund mehr'}


@pytest.fixture
def folder(tmp_path):
  (tmp_path / 'deep').mkdir()
  for name in CAPTIONS:
    (tmp_path / name).write_bytes(b'not decoded here')
  return tmp_path


def captions(source):
  return {entry.name: entry.text for entry in sources.list_folder(source).entries}


@pytest.mark.parametrize('file_key, text_key', [('file_name', 'text'), ('video', 'caption'), ('media_path', 'caption'),
                                                ('video_path', 'text'), ('File_Name', 'TEXT')])
def test_metadata_of_any_form_lists_the_same(folder, file_key, text_key):
  rows = [{file_key: name, text_key: text} for name, text in CAPTIONS.items()]
  jsonl = '\n\n'.join(json.dumps(row, ensure_ascii=False) for row in rows)
  quote = lambda text: '"' + text.replace('"', '""') + '"'
  table = '\n'.join([f'{file_key},{text_key}'] + [f'{name},{quote(text)}' for name, text in CAPTIONS.items()])
  forms = {'metadata.jsonl': jsonl, 'metadata.csv': '\ufeff' + table, 'metadata.json': json.dumps(rows)}
  for name, content in forms.items():
    (folder / name).write_text(content, encoding='utf-8')
    assert captions(folder) == CAPTIONS
    assert captions(folder / name) == CAPTIONS
    (folder / name).unlink()


def test_a_text_file_beside_each(folder):
  for name, text in CAPTIONS.items():
    (folder / name).with_suffix('.txt').write_text(text, encoding='utf-8')
  assert captions(folder) == {name: ' '.join(text.split()) for name, text in CAPTIONS.items()}


def test_without_captions_they_are_empty_and_counted(folder):
  listing = sources.list_folder(folder)
  assert {entry.text for entry in listing.entries} == {''}
  assert listing.notes == [('without caption', name) for name in ('a.mp4', 'c.png', 'deep/b.wav')]


def test_what_cannot_be_used_is_named(folder):
  (folder / 'empty.mp4').touch()
  os.mkfifo(folder / 'pipe.mp4')
  (folder / 'notes.pdf').write_text('x')
  (folder / '.hidden.mp4').write_text('x')
  listing = sources.list_folder(folder)
  assert sorted(listing.rejected) == [('empty file', 'empty.mp4'), ('not a file', 'pipe.mp4')]
  assert ('not media by its name, left out', 'notes.pdf') in listing.notes
  rows = [{'file_name': 'a.mp4', 'text': 'x'}, {'file_name': 'gone.mp4', 'text': 'y'}, {'text': 'of nothing'},
          {'file_name': 'a.mp4', 'text': 'again'}, {'file_name': 'c.png', 'audio': 'gone.wav'},
          {'file_name': 'c.png', 'audio': 'deep/b.wav'}]
  (folder / 'metadata.jsonl').write_text('\n'.join(map(json.dumps, rows)))
  listing = sources.list_folder(folder)
  assert listing.rejected == [('missing file', 'gone.mp4'), ('row without a file', 'of nothing'),
                              ('its sound is missing', 'c.png: gone.wav')]
  assert [(e.name, e.text, bool(e.audio)) for e in listing.entries] == [
      ('a.mp4', 'x', False), ('a.mp4#2', 'again', False), ('c.png#2', '', True)]
  assert len({entry.key for entry in listing.entries}) == 3
  assert [name for why, name in listing.notes if 'not named' in why] == ['empty.mp4', 'pipe.mp4']


def test_the_key_changes_with_the_file_and_the_hash_with_the_listing(folder):
  before = sources.list_folder(folder)
  os.utime(folder / 'a.mp4', (1, 1))
  touched = sources.list_folder(folder)
  assert touched.hash == before.hash
  assert [a.key == b.key for a, b in zip(before.entries, touched.entries)] == [False, True, True]
  (folder / 'a.txt').write_text('new')
  assert sources.list_folder(folder).hash != before.hash


def test_a_sound_of_its_own_is_part_of_the_key_and_of_the_hash(folder):
  def listed(audio):
    (folder / 'metadata.jsonl').write_text(json.dumps({'file_name': 'a.mp4', 'text': 'x', **audio}))
    return sources.list_folder(folder)
  silent, before = listed({}), listed({'audio': 'deep/b.wav'})
  os.utime(folder / 'deep' / 'b.wav', (1, 1))
  touched = listed({'audio': 'deep/b.wav'})
  assert touched.hash == before.hash != silent.hash and touched.entries[0].key != before.entries[0].key
  (folder / 'deep' / 'b.wav').write_bytes(b'another sound')
  assert listed({'audio': 'deep/b.wav'}).hash != before.hash
  assert listed({}).hash == silent.hash and listed({}).entries[0].key == silent.entries[0].key


def test_links_to_folders_are_followed_and_what_is_met_twice_is_listed_once(folder, tmp_path_factory):
  elsewhere = tmp_path_factory.mktemp('elsewhere')
  (elsewhere / 'd.mp4').write_text('x')
  (elsewhere / 'home').symlink_to(folder)
  for link, target in (('again', 'deep'), ('first', elsewhere), ('second', elsewhere), ('loop', '.')):
    (folder / link).symlink_to(target)
  assert set(captions(folder)) == {*CAPTIONS, 'first/d.mp4'}
  assert set(captions(folder / 'first')) == {'d.mp4', *(f'home/{name}' for name in CAPTIONS)}


def test_an_output_inside_the_source_is_passed_over(folder):
  (folder / 'out').mkdir()
  (folder / 'out' / 'd.mp4').write_text('x')
  assert len(sources.list_folder(folder).entries) == 4
  assert len(sources.list_folder(folder, exclude=folder / 'out').entries) == 3


@pytest.mark.parametrize('content, message', [
    ('{"file_name": "a.mp4"}\n{"file', 'metadata.jsonl: line 2 cannot be read'),
    ('{"path": "a.mp4", "text": "x"}', 'has the columns path, text and none of file_name'),
    ('["a.mp4"]', 'is no list of objects'), ('', 'holds no media')])
def test_broken_metadata_is_said_with_the_place(folder, content, message):
  (folder / 'metadata.jsonl').write_text(content)
  with pytest.raises(ValueError, match=message):
    sources.list_folder(folder)


def test_no_folder_no_media(tmp_path):
  with pytest.raises(ValueError, match='does not exist; give a folder'):
    sources.list_folder(tmp_path / 'nowhere')
  with pytest.raises(ValueError, match='holds no media'):
    sources.list_folder(tmp_path)
  (tmp_path / 'a.mp4').touch()
  with pytest.raises(ValueError, match='a.mp4: empty file'):
    sources.list_folder(tmp_path)
  with pytest.raises(ValueError, match='is a single file'):
    sources.list_folder(tmp_path / 'a.mp4')
