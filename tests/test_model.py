"""model.py: shapes, and that a modality's score is what it says."""

import pytest
import torch

from losses import classification_loss
from model import ENCODERS, FUSIONS, Model, Unimodal


def features(m, B=5, d=64):
    return [torch.randn(B, d, generator=torch.Generator().manual_seed(j)) for j in range(m)]


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_every_encoder_takes_any_number_of_channels(encoder, channels):
    """(B, channels, H, W) -> (B, d), also for a picture that is not square."""
    phi, d = ENCODERS[encoder](channels)
    assert phi(torch.zeros(2, channels, 40, 24)).shape == (2, d)


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("m", [2, 3])
def test_every_fusion_takes_any_number_of_modalities(fusion, m):
    """(B, d) each -> (B, D), every modality has a say, and the score of one needs only that one."""
    torch.manual_seed(0)
    model = Model([1] * m, 10, fusion=fusion)
    z = [z_j.requires_grad_() for z_j in features(m)]
    assert model.fusion(z).shape == (5, model.fusion.D)
    assert model.logits(z).shape == (5, 10)
    for gradient in torch.autograd.grad(model.logits(z).square().sum(), z):
        assert gradient.abs().sum() > 0
    for j in range(m):
        score = model.score(z, j)
        gradients = torch.autograd.grad(
            score.square().sum(), z, allow_unused=True, materialize_grads=True
        )
        assert [g.abs().sum() > 0 for g in gradients] == [k == j for k in range(m)]


def test_concat_scores_by_its_block_of_the_classifier():
    """Score of j = W^(j) z^(j) + b, and the fused logits are the sum of the blocks."""
    model, z, d = Model([1, 1, 1], 10), features(3), 64
    W, b = model.classifier.weight, model.classifier.bias
    for j in range(3):
        block = z[j] @ W[:, j * d : (j + 1) * d].T + b
        assert torch.allclose(model.score(z, j), block, atol=1e-6)
    assert torch.allclose(
        sum(model.score(z, j) for j in range(3)) - 2 * b, model.logits(z), atol=1e-6
    )


def test_fusions_compute_their_formulas():
    """Sum, FiLM and gates, written out for two modalities."""
    z = features(2)
    assert torch.equal(FUSIONS["sum"](2, 64)(z), z[0] + z[1])
    affine = FUSIONS["affine"](2, 64)
    gamma, beta = affine.films[0](z[1]).split(64, dim=1)
    assert torch.allclose(affine(z), z[0] + gamma * z[0] + beta)
    gated = FUSIONS["gated"](2, 64)
    both = torch.cat(z, 1)
    gates = [1 / (1 + torch.exp(-gated.gates[j](both))) for j in (0, 1)]
    assert torch.allclose(
        gated(z), sum(gates[j] * torch.tanh(gated.values[j](z[j])) for j in (0, 1)), atol=1e-6
    )


def test_unimodal_trains_each_modality_alone():
    """The gradient of the sum of the losses is, for each encoder and classifier, that of its own loss."""
    torch.manual_seed(0)
    model, y = Unimodal([1, 2], 3), torch.tensor([0, 1, 2, 0])
    x = [torch.randn(4, 1, 16, 16), torch.randn(4, 2, 16, 16)]
    z = model(x)
    sum(classification_loss(o, y) for o in model.fitted(z)).backward()
    for j in (0, 1):
        own = [*model.phi[j].parameters(), *model.classifiers[j].parameters()]
        alone = torch.autograd.grad(
            classification_loss(model.classifiers[j](model.phi[j](x[j])), y), own
        )
        assert all(torch.allclose(p.grad, g, atol=1e-6) for p, g in zip(own, alone))
        assert torch.equal(model.score(z, j), model.classifiers[j](z[j]))
    assert torch.allclose(model.logits(z), model.score(z, 0) + model.score(z, 1))


def test_a_joint_model_fits_its_fused_logits():
    """L_CLS of a joint model sees only W f(z) + b."""
    model, z = Model([1, 1], 3), features(2)
    (fitted,) = model.fitted(z)
    assert torch.equal(fitted, model.logits(z))


@pytest.mark.parametrize("names", [dict(encoder="vit"), dict(fusion="cat")])
def test_an_unknown_name_lists_the_choices(names):
    """Encoders and fusions alike."""
    with pytest.raises(ValueError, match="choose from .*(cnn|affine)"):
        Model([1, 1], 3, **names)
