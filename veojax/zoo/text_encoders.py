"""`veojax prepare --embed`: the captions of a data set through a published text encoder, once, before any training.

T5, UMT5 and CLIP (its text tower by itself, or of the folder of both towers) run here in JAX. Any other folder that
transformers' AutoModel reads (a large language model's, in safetensors) runs through that library, which is an
optional extra: the last hidden state of each token.
"""
import functools
import hashlib
import json
import pathlib
from collections.abc import Sequence

import numpy as np

from veojax.data import datasets, text_features
from veojax.data.text_features import Encode
from veojax.zoo import clip_text, t5, weight_table
from veojax.zoo.clip_text import ClipTextConfig
from veojax.zoo.clip_tokenizer import ClipTokenizer

FOLDER = 'text_features'


def embed(data, encoder, *, max_length: int = 256) -> dict[str, text_features.TextFeatures]:
  """Text features of every split of the data set `data`, stored in it; by the text encoder in the folder `encoder`."""
  encode, name = open_encoder(encoder, max_length), fingerprint(encoder, max_length)
  found = {}
  for split in ('train', 'validation'):
    try:
      dataset = datasets.open_dataset(data, split)
    except ValueError:
      if split == 'train':
        raise
      continue
    texts = [dataset.text(i) for i in range(len(dataset))]
    found[split] = text_features.write(place(data, split), texts, encode, name)
  return found


def place(data, split: str) -> pathlib.Path:
  return pathlib.Path(data) / FOLDER / split


def fingerprint(encoder, max_length: int) -> str:
  """Of what an encoder's folder holds, by its config and the sizes of its files; and of how long texts may be."""
  folder = pathlib.Path(encoder)
  files = sorted((p.name, p.stat().st_size) for p in folder.iterdir() if p.is_file()) if folder.is_dir() else []
  config = (folder / 'config.json').read_text() if (folder / 'config.json').exists() else ''
  return hashlib.sha256(json.dumps([config, files, max_length]).encode()).hexdigest()[:16]


def open_encoder(folder, max_length: int) -> Encode:
  """texts → their features. ValueError where the folder holds no text encoder."""
  folder = pathlib.Path(folder)
  try:
    tree = json.loads((folder / 'config.json').read_text())
    kind = tree.get('model_type')
  except (OSError, ValueError) as error:
    raise ValueError(f'{folder / "config.json"} cannot be read ({error}); give the folder of a text encoder') from None
  # Of a published pipeline the tokenizer lies in a folder beside it.
  places = folder, folder.parent / 'tokenizer'
  vocabulary = next((path for place in places if (path := place / 'spiece.model').exists()), None)
  if kind in t5.ENCODERS and vocabulary is not None:
    return functools.partial(_encode_t5, t5.load(folder, vocabulary), max_length)
  if kind == 'clip_text_model':
    return _clip(folder, places, clip_text.PART.read_config(folder / 'config.json'))
  if kind == 'clip':
    return _clip(folder, places, clip_text.config_of_both(tree, folder / 'config.json'))
  return _transformers(folder, max_length)


def _encode_t5(model: t5.TextModel, max_length: int, texts: Sequence[str]) -> list[np.ndarray]:
  features, mask = model.encode(texts, max_length)
  return [f[m] for f, m in zip(features, mask)]


def _clip(folder: pathlib.Path, places: Sequence[pathlib.Path], config: ClipTextConfig) -> Encode:
  """Rows of CLIP have one length, and their padding is read too."""
  found = next((place for place in places if (place / 'tokenizer_config.json').exists()), folder)
  tokenizer = ClipTokenizer.load(found)
  tower = weight_table.load(folder, [*clip_text.table(config), *clip_text.BESIDE], clip_text.PART.shapes(config))
  return lambda texts: list(clip_text.encode(tower, tokenizer, texts, 'float32'))


def _transformers(folder: pathlib.Path, max_length: int) -> Encode:
  try:
    import torch
    import transformers
  except ImportError:
    raise ValueError(f'{folder} is a text encoder that runs through transformers and PyTorch, which are not installed: '
                     "pip install -e '.[embed]'") from None
  try:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = transformers.AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True).eval()
  except (OSError, ValueError, KeyError) as error:
    raise ValueError(f'{folder} is no text encoder that transformers can read ({str(error).splitlines()[0]}); give a '
                     'folder with config.json, safetensors and its tokenizer') from None
  if tokenizer.pad_token is None:
    tokenizer.pad_token = tokenizer.eos_token
  tokenizer.padding_side = 'right'
  model = model.to('cuda' if torch.cuda.is_available() else 'cpu')

  def encode(texts: list[str]) -> list[np.ndarray]:
    inputs = tokenizer(texts, padding=True, truncation=True, max_length=max_length, return_tensors='pt')
    inputs = inputs.to(model.device)
    with torch.no_grad():
      features = model(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask).last_hidden_state
    return [f[m.bool()].float().cpu().numpy() for f, m in zip(features, inputs.attention_mask)]
  return encode
