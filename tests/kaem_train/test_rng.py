"""Noise is named by (seed, step, purpose), and different names give unrelated noise."""

import itertools

import torch

from kaem_train.rng import noise_stream


def test_a_stream_is_a_function_of_its_name():
    left, right = (torch.rand(5, generator=noise_stream(3, 7, "posterior")) for _ in range(2))
    assert torch.equal(left, right)


def test_neighbouring_names_give_unrelated_noise():
    names = itertools.product((0, 1, 2**32), (0, 1, 2), ("posterior", "prior start"))
    draws = torch.stack([torch.randn(2000, generator=noise_stream(*name)) for name in names])
    correlation = torch.corrcoef(draws)
    # 153 pairs with standard error 1/sqrt(2000) = .022: 4.5 of them.
    assert float((correlation - torch.eye(len(draws))).abs().max()) < 0.1
