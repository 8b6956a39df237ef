"""The frame is an invertible affine map with the right Jacobian, and it starts at the principal axes."""

import pytest
import torch

from kaem_train.model.prior.frame import LinearFrame

pytestmark = pytest.mark.usefixtures("float64")


def _frame(num_latents=5):
    torch.manual_seed(0)
    frame = LinearFrame(num_latents)
    with torch.no_grad():
        frame.offset.normal_()
        frame.matrix.add_(0.4 * torch.randn(num_latents, num_latents))
    return frame


def test_a_new_frame_is_the_identity():
    z = torch.randn(7, 3)
    frame = LinearFrame(3)
    assert torch.equal(frame(z), z)
    assert torch.equal(frame.inverse(z), z)
    assert float(frame.log_det_inverse().detach()) == 0.0


def test_the_inverse_undoes_the_map_and_its_log_determinant_is_that_of_the_jacobian():
    frame = _frame()
    u = torch.randn(7, 5)
    assert torch.allclose(frame.inverse(frame(u)), u)
    jacobian = torch.autograd.functional.jacobian(lambda z: frame.inverse(z[None])[0], torch.randn(5))
    assert float(frame.log_det_inverse().detach()) == pytest.approx(float(torch.slogdet(jacobian).logabsdet))


def test_moments_are_those_of_many_draws():
    frame = _frame()
    mean, std = torch.randn(1, 5), 0.1 + torch.rand(1, 5)
    u = frame.inverse(mean + std * torch.randn(400_000, 5))
    found_mean, found_std = frame.inverse_moments(mean, std)
    assert torch.allclose(found_mean[0], u.mean(0), atol=0.01)
    assert torch.allclose(found_std[0], u.std(0), atol=0.01)


def test_a_started_frame_whitens_the_latents():
    latents = torch.randn(500, 5) @ torch.randn(5, 5) + torch.randn(5)
    frame = LinearFrame(5)
    frame.start(latents)
    u = frame.inverse(latents)
    assert torch.allclose(u.mean(0), torch.zeros(5), atol=1e-9)
    assert torch.allclose(torch.cov(u.T), torch.eye(5), atol=1e-9)


def test_latents_that_do_not_vary_leave_the_frame_invertible():
    frame = LinearFrame(3)
    frame.start(torch.randn(100, 3) * torch.tensor([1.0, 0.0, 2.0]))
    assert torch.isfinite(frame.log_det_inverse())
