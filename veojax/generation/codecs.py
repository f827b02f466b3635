"""Codecs by their names, whatever their kind: the project's own, and those of published models."""
from veojax.models import codec_file
from veojax.models.audio_codec import AudioCodec
from veojax.models.video_codec import VideoCodec
from veojax.zoo.taef2 import FrameCodec

KINDS = {'video': (VideoCodec, FrameCodec), 'audio': (AudioCodec,)}


def load(name, kind: str):
  """The codec, 'video' or 'audio', of a name as `codec_file.locate` takes it."""
  return codec_file.load(codec_file.locate(name, kind), KINDS[kind])
