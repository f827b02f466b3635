"""Prompts before a model reads them: from a file, chains over the time of a long clip, short ones expanded."""
import importlib
import pathlib
import re
import shlex
import subprocess
import sys
from collections.abc import Callable

Expand = Callable[[str], str]


def read(path) -> list[str]:
  """Prompts of a text file, one a line. Raises ValueError where there is no file, no text in it, or no prompt."""
  try:
    text = pathlib.Path(path).read_text(encoding='utf-8')
  except FileNotFoundError:
    raise ValueError(f'{path} does not exist; give a text file with one prompt a line') from None
  except UnicodeDecodeError:
    raise ValueError(f'{path} is no UTF-8 text; give a text file with one prompt a line') from None
  lines = [line.strip() for line in text.splitlines()]
  prompts = [line for line in lines if line and not line.startswith('#')]
  if not prompts:
    raise ValueError(f'{path} holds no prompt; write one a line (lines that begin with # are comments)')
  return prompts


def chain(prompts: str | list[str], num_frames: int) -> list[str]:
  """The prompts of a long clip, one after another."""
  out = [prompts] if isinstance(prompts, str) else list(prompts)
  if not out or num_frames < 1:
    raise ValueError(f'{len(out)} prompts for {num_frames} frames; give at least one of each')
  return out


def expanded(prompts: list[str], expand: Expand | None) -> list[str]:
  """What the model is told instead of each prompt, equal ones alike. Raises ValueError where that is no text."""
  if expand is None:
    return prompts
  told = {text: expand(text) for text in dict.fromkeys(prompts)}
  for text, longer in told.items():
    if not isinstance(longer, str) or not longer.strip():
      raise ValueError(f'expand({text!r}) gave {longer!r}; it must give a prompt')
  return [told[text] for text in prompts]


def expander(name: str) -> Expand:
  """The function that a command line names: 'module:function', or a command that reads a prompt and writes another.

  Raises ValueError where there is no such function or command, and, when called, where the command fails.
  """
  if match := re.fullmatch(r'([\w.]+):(\w+)', name):
    sys.path.insert(0, '')  # a module beside the user, as `python -m` finds it
    try:
      function = getattr(importlib.import_module(match[1]), match[2])
    except (ImportError, AttributeError) as error:
      raise ValueError(f'expand={name!r}: {error}; give module:function, or a command') from None
    finally:
      sys.path.remove('')
    if not callable(function):
      raise ValueError(f'expand={name!r} is no function but {function!r}; give module:function, or a command')
    return function
  words = shlex.split(name)

  def command(prompt: str) -> str:
    try:
      return subprocess.run(words, input=prompt, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, IndexError) as error:
      raise ValueError(f'expand={name!r} cannot be run ({error}); give module:function, or a command') from None
    except subprocess.CalledProcessError as error:
      raise ValueError(f'expand={name!r} ended with {error.returncode}: {error.stderr.strip()[-200:]}') from None
  return command
