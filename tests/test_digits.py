"""The real data: per-sample gradients are autograd's, and the net has learnt something."""

import torch

from batchline.kernels import digits
from batchline.kernels.digits import CLASSES, HIDDEN, PIXELS


def _loss(w1, b1, w2, b2, x, y):
    return torch.nn.functional.cross_entropy(
        torch.relu(x @ w1.T + b1) @ w2.T + b2, y, reduction="none"
    )


def test_per_sample_gradients_are_autograds():
    weights = [weight.double().requires_grad_() for weight in digits._trained()]
    images, classes = digits.images()
    rows = torch.randint(len(images), (5,), generator=torch.Generator().manual_seed(11))
    ours = digits.per_sample_gradients(5, torch.float32, "cpu", seed=11)
    assert (
        ours.shape
        == (5, digits.PARAMETERS)
        == (5, PIXELS * HIDDEN + HIDDEN + HIDDEN * CLASSES + CLASSES)
    )
    for row, gradient in zip(rows, ours):
        losses = _loss(*weights, images[row][None].double(), classes[row][None])
        expected = torch.cat(
            [part.flatten() for part in torch.autograd.grad(losses.sum(), weights)]
        )
        torch.testing.assert_close(gradient.double(), expected, rtol=1e-4, atol=1e-6)


def test_the_weight_gradient_is_the_product_of_the_hidden_layers_tensors():
    x, dz1 = digits.hidden_layer(7, torch.float32, "cpu", seed=3)
    g = digits.per_sample_gradients(7, torch.float32, "cpu", seed=3)
    torch.testing.assert_close(
        dz1.T @ x, g[:, : PIXELS * HIDDEN].sum(0).view(HIDDEN, PIXELS)
    )


def test_the_net_is_learning_and_has_not_finished():
    images, classes = digits.images()
    loss = _loss(*digits._trained(), images, classes)
    assert 0.05 < loss.mean() < 1.0  # ln 10 = 2.3 before training


def test_more_samples_than_images_are_drawn_with_replacement():
    x, _ = digits.hidden_layer(4096, torch.float16, "cpu", seed=0)
    assert x.shape == (4096, PIXELS) and x.dtype == torch.float16
    assert len(x.unique(dim=0)) < 1797
