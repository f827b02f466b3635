import collections
import fractions

import numpy as np
import pytest

from veojax.data.epochs import Epochs


def lengths_of(n, seed=0):
  rng = np.random.default_rng(seed)
  return np.stack([rng.integers(20, 400, n), rng.integers(2, 17, n)], 1)


@pytest.mark.parametrize('weight', [1, 3, 0.25, 0.4, 1.5])
def test_a_weight_is_passes_in_an_epoch(weight):
  """Exactly, over as many epochs as its denominator, for clips in whole blocks."""
  share = fractions.Fraction(weight).limit_denominator()
  epochs = Epochs(lengths_of(40), np.full(40, weight), seed=0)
  counts = collections.Counter(clip for e in range(7, 7 + share.denominator) for clip in epochs[e].tolist())
  assert set(counts.values()) == {share.numerator} and len(counts) == 40
  within = collections.Counter(epochs[3].tolist())
  assert max(within.values()) <= -(-share.numerator // share.denominator)


def test_weights_mix_and_the_number_of_places_is_fixed():
  weights = np.repeat([1.0, 2.0, 0.25], [20, 7, 30])
  epochs = Epochs(lengths_of(57), weights, seed=0)
  for e in range(9):
    counts = np.bincount(epochs[e], minlength=57)
    assert (counts[:20] == 1).all() and (counts[20:27] == 2).all() and counts[27:].max() == 1
    assert len(epochs[e]) == len(epochs.bound) == 20 + 14 + 8
  seen = {clip for e in range(4) for clip in epochs[e].tolist()}
  assert seen == set(range(57))


def test_no_epoch_passes_its_bound_and_all_are_about_as_long():
  lengths = lengths_of(1000)
  epochs = Epochs(lengths, np.full(1000, 0.1), seed=0)
  totals = []
  for e in range(12):
    assert (lengths[epochs[e]] <= epochs.bound).all()
    totals.append(lengths[epochs[e], 0].sum())
  assert (max(totals) - min(totals)) / np.mean(totals) < 0.01
  assert epochs.bound[:, 0].sum() < 1.02 * np.mean(totals)


def test_epochs_are_a_pure_function_of_seed_and_number():
  make = lambda seed: Epochs(lengths_of(50), np.full(50, 0.2), seed)
  np.testing.assert_array_equal(make(1)[4], make(1)[4])
  assert set(make(1)[4]) != set(make(1)[5]) and set(make(1)[4]) != set(make(2)[4])
