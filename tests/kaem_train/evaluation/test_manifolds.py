"""Precision and recall on sets whose answer is known."""

import numpy as np
import pytest

from kaem.errors import RequestError
from kaem_train.evaluation.manifolds import precision_and_recall


def _cloud(num, centre, seed=0):
    return (np.random.default_rng(seed).standard_normal((num, 3)) + centre).astype(np.float32)


def test_equal_sets_have_both():
    real = _cloud(200, 0.0)
    assert precision_and_recall(real, real) == (1.0, 1.0)


def test_distant_sets_have_neither():
    assert precision_and_recall(_cloud(100, 0.0), _cloud(100, 100.0, seed=1)) == (0.0, 0.0)


def test_a_model_that_draws_one_of_two_clusters_is_precise_and_recalls_half():
    real = np.concatenate([_cloud(500, 0.0, 0), _cloud(500, 100.0, 1)])
    precision, recall = precision_and_recall(real, _cloud(1000, 0.0, 2))
    assert precision > 0.9
    assert 0.45 < recall <= 0.5


def test_a_model_that_adds_nonsense_recalls_everything_and_is_half_precise():
    real = _cloud(1000, 0.0, 0)
    precision, recall = precision_and_recall(real, np.concatenate([_cloud(500, 0.0, 1), _cloud(500, 100.0, 2)]))
    assert 0.4 < precision <= 0.5
    assert recall > 0.9


def test_balls_reach_to_the_third_neighbour_by_hand():
    # On a line at 0, 1, 2, 3, 100: the third neighbours of 0 and 3 are 3 away, of 1 and 2 2 away, of 100 99 away.
    real = np.array([[0.0], [1.0], [2.0], [3.0], [100.0]], np.float32)
    generated = np.array([[-2.9], [-3.1], [5.9], [198.0], [199.5]], np.float32)
    precision, _ = precision_and_recall(real, generated)
    assert precision == pytest.approx(3 / 5)


def test_more_vectors_than_one_block_are_compared_alike():
    real, generated = _cloud(1300, 0.0, 0), _cloud(1100, 0.5, 1)
    distances = np.linalg.norm(real[:, None].astype(float) - real[None], axis=-1)
    radii = np.sort(distances, axis=1)[:, 3]
    inside = np.linalg.norm(generated[:, None].astype(float) - real[None], axis=-1) <= radii
    assert precision_and_recall(real, generated)[0] == pytest.approx(inside.any(1).mean(), abs=1e-3)


def test_three_images_have_no_third_neighbour():
    with pytest.raises(RequestError, match="neighbours"):
        precision_and_recall(_cloud(3, 0.0), _cloud(10, 0.0))
