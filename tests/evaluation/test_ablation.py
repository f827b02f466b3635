"""Ablations: every variant is a config, and what is scored once is kept."""
import json

import pytest

from veojax.evaluation import ablation
from veojax.training.transformer import TransformerStep


@pytest.mark.parametrize('name', ablation.VARIANTS)
def test_every_variant_is_a_run_and_another_one_than_the_first(name):
  config, first = (ablation.variant(each, 'data', 7) for each in (name, 'flow'))
  assert config.data == 'data' and config.loop.num_steps == 7
  assert (config == first) == (name == 'flow')
  TransformerStep(config).make_optimizer()
  assert len({ablation.folder_of(each) for each in ablation.VARIANTS}) == len(ablation.VARIANTS)


def test_what_is_scored_is_kept_for_the_same_settings(tmp_path):
  settings = {'num_clips': 2, 'num_steps': 3, 'first': 'flow'}
  path = tmp_path / ablation.RESULTS
  assert ablation.kept(path, settings) == {}
  path.write_text(json.dumps({'settings': settings, 'variants': {'flow': {'own': 1.0}}}))
  assert ablation.kept(path, settings) == {'flow': {'own': 1.0}}
  with pytest.raises(ValueError, match="'num_steps': 3.*another folder"):
    ablation.kept(path, {**settings, 'num_steps': 4})
