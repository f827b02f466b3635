"""Absences that a pillar explains and those that nothing does, on tracks that are written down."""
import dataclasses

import numpy as np
import pytest

from veojax.evaluation import world_objects
from veojax.evaluation.world_parser import SHAPES, Parse, Track

T, R = 40, .08
FULL = np.pi * R * R


def track(x, present, colour='red', shape='circle', doubled=np.zeros(T, bool)):
  """A circle's track along x float[T] at the height .5; away where it is not present."""
  present = np.asarray(present, bool)
  positions = np.where(present[:, None], np.stack([x, np.full(T, .5)], 1), np.nan)
  likeness = np.where(present[:, None], np.eye(3)[SHAPES.index(shape)], np.nan)
  return Track(colour, positions, np.where(present, FULL, 0.), likeness, doubled)


def measured(tracks, pillar=(.4, .6), colours=('red',), open_edges=False):
  counts = sum(t.present.astype(int) for t in tracks)
  parse = Parse(16., 64, 64, {t.colour: t for t in tracks}, pillar, counts)
  return world_objects.measure(parse, list(colours), open_edges=open_edges, fastest=3.)


X = .1 + .03 * np.arange(T)  # .48 widths/s, behind the pillar between .4 and .6
BEHIND = (X > .4) & (X < .6)
WHOLE = {'count_constancy': 1., 'permanence': 1., 'spurious': 0., 'identity_swaps': 0.}


def test_an_object_that_passes_behind_the_pillar_is_permanent():
  assert measured([track(X, ~BEHIND)]) == WHOLE | {'reappearance': 1.}


def test_one_that_never_comes_out_is_not():
  lost = measured([track(X, X <= .4)])
  assert lost['permanence'] == 0 and lost['reappearance'] == 0 and .5 < lost['count_constancy'] < 1


def test_nor_one_that_vanishes_in_the_open_or_comes_back_elsewhere():
  assert measured([track(X, ~BEHIND)], pillar=None)['permanence'] == 0
  assert measured([track(X, (X < .25) | (X > .35))])['permanence'] == 0
  jumped = np.where(X > .6, X + .2, X)
  assert measured([track(jumped, ~BEHIND)])['permanence'] == 0


def test_alone_it_must_come_out_on_the_other_side():
  back = np.where(X > .5, 1. - X, X)  # turns round behind the pillar
  assert measured([track(back, ~BEHIND)])['reappearance'] == 0
  still = track(np.full(T, .9), np.ones(T), 'blue')
  assert measured([track(back, ~BEHIND), still], colours=('red', 'blue'))['reappearance'] == 1


def test_leaving_the_frame_is_allowed_where_there_are_no_walls():
  inside = X < .95
  assert measured([track(X, inside)], pillar=None, open_edges=True)['permanence'] == 1
  assert measured([track(X, inside)], pillar=None)['permanence'] == 0


def test_strangers_are_counted_and_the_missing_is_not_replaced_by_them():
  stranger = track(np.full(T, .8), np.arange(T) < 10, 'green')
  found = measured([track(X, np.ones(T)), stranger], pillar=None)
  assert found['spurious'] == .25 and found['count_constancy'] == .75 and found['permanence'] == 1
  assert measured([stranger], pillar=None) == {'count_constancy': .25, 'permanence': 0., 'spurious': .25,
                                               'identity_swaps': 0.}


def test_a_second_object_of_a_colour_is_spurious_and_nothing_else():
  first, late = np.arange(T) < 10, np.arange(T) >= 35
  assert measured([track(X, ~BEHIND, doubled=first)]) == WHOLE | {'spurious': .25, 'reappearance': 1.}
  stranger = track(np.full(T, .8), first, 'green')
  both = measured([track(X, np.ones(T), doubled=first | late), stranger], pillar=None)
  assert both['spurious'] == 15 / 40  # of frames, however many are in one
  assert measured([track(X, np.ones(T)), dataclasses.replace(stranger, doubled=first)], None)['spurious'] == .25


def test_an_exchange_of_places_and_a_change_of_shape_are_swaps():
  here, there = np.full(T, .2), np.full(T, .8)
  half = np.arange(T) < T // 2
  exchanged = [track(np.where(half, a, b), np.ones(T), c) for a, b, c in ((here, there, 'red'), (there, here, 'blue'))]
  assert measured(exchanged, None, ('red', 'blue'))['identity_swaps'] == 1
  one = track(here, np.ones(T))
  one.likeness[4:8] = np.eye(3)[1]
  assert measured([one], None)['identity_swaps'] == pytest.approx(1)
  one.likeness[4:8] = np.eye(3)[0]
  one.likeness[4:6] = np.eye(3)[1]
  assert measured([one], None)['identity_swaps'] == 0  # too short to be another object
