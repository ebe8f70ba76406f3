"""model.py: shapes, and that a modality's score is what it says."""

import pytest
import torch
import torchvision

import data
from bilevel import grad, hypergradient, make_hvp
from losses import classification_loss, modality_matching_loss, total_loss
from model import CLIP, ENCODERS, FUSIONS, IMAGENET, MultimodalModel, encoder_names
from utils.loader import collate
from utils.media import normalize
from utils.modules import eval_mode
from utils.pretrained import load_tokenizer


def features(m, B=5, d=64):
    return [torch.randn(B, d, generator=torch.Generator().manual_seed(j)) for j in range(m)]


@pytest.mark.parametrize("encoder", ["cnn", "resnet18", "resnet50"])
@pytest.mark.parametrize("channels", [2, 3])
def test_every_picture_encoder_takes_any_number_of_channels(encoder, channels):
    """(B, channels, H, W) -> (B, d), also for a picture that is not square."""
    phi, d = ENCODERS[encoder](channels)
    assert phi(torch.zeros(2, channels, 40, 24)).shape == (2, d)


def test_a_clip_is_the_mean_over_its_frames():
    """(B, F, C, H, W): each frame is encoded like a picture."""
    phi, d = ENCODERS["resnet18"](3)
    phi.eval()
    x = torch.randn(2, 3, 3, 40, 24)
    expected = torch.stack([phi(x[:, f]) for f in range(3)]).mean(0)
    assert phi(x).shape == (2, d) and torch.allclose(phi(x), expected, atol=1e-5)


@pytest.mark.parametrize("mean, std", [IMAGENET, CLIP])
def test_pictures_become_numbers_in_the_encoder(mean, std):
    """Bytes by the channels' mean and std, one channel alone to 0..1, of a clip too; halves become
    floats."""
    x = torch.tensor([0, 51, 255], dtype=torch.uint8).view(3, 1, 1).expand(2, 3, 4, 4)
    expected = [(v - m) / s for v, m, s in zip([0, 0.2, 1], mean, std)]
    assert normalize(x, (mean, std))[1, :, 2, 2].tolist() == pytest.approx(expected, rel=1e-5)
    assert normalize(x[:, 1:2], (mean, std)).unique().tolist() == pytest.approx([0.2])
    numbers = torch.randn(2, 3, 4, 4)
    assert normalize(numbers, (mean, std)) is numbers
    assert torch.equal(normalize(numbers.half(), (mean, std)), numbers.half().float())


def test_encoders_see_standardised_pictures(tiny_clip):
    """ResNets by ImageNet's numbers, CLIP by its own."""
    for encoder, statistics in [("resnet18", IMAGENET), (f"clip:{tiny_clip}", CLIP)]:
        phi = MultimodalModel([3], 5, encoder).phi[0].eval()
        generator = torch.Generator().manual_seed(0)
        x = torch.randint(256, (2, 3, 224, 224), dtype=torch.uint8, generator=generator)
        assert torch.equal(phi(x), phi(normalize(x, statistics)))
        assert not torch.allclose(phi(x), phi(x / 255), atol=1e-3)


def test_features_of_several_widths_are_mapped_to_the_smallest():
    """cnn gives 64 numbers and ResNet18 512: z^(j) has 64 each, and L_MM can compare them."""
    model = MultimodalModel([1, 3], 5, "cnn,resnet18")
    z, _ = model([torch.randn(2, 1, 20, 20), torch.randn(2, 3, 40, 40)])
    assert [z_j.shape for z_j in z] == [(2, 64)] * 2 and model.logits(z).shape == (2, 5)
    assert isinstance(model.phi[1][1], torch.nn.Linear)


def test_pretrained_weights_are_torchvisions(monkeypatch):
    """Asked for by name; a stem of other channels starts from the mean over RGB."""
    real, asked = torchvision.models.get_model, []

    def get_model(name, weights):
        asked.append((name, weights))
        return real(name, weights=None)

    monkeypatch.setattr(torchvision.models, "get_model", get_model)
    model = MultimodalModel([1, 3], 5, "resnet18", pretrained=True)
    assert asked == [("resnet18", "DEFAULT")] * 2
    stems = [phi.net.conv1.weight.shape for phi in model.phi]
    assert stems == [(64, 1, 7, 7), (64, 3, 7, 7)]
    MultimodalModel([1], 5, "resnet18")
    assert asked[-1] == ("resnet18", None)


@pytest.fixture(params=["bert", "clip"])
def text_model(request, tiny_bert, tiny_clip):
    """(encoders, an image batch, a text batch, d)."""
    sentences = ["the dog is fine .", "a cat"]
    kinds = {
        "bert": (f"cnn,bert:{tiny_bert}", tiny_bert, 32),
        "clip": (f"clip:{tiny_clip}", tiny_clip, 24),
    }
    encoders, folder, d = kinds[request.param]
    tokenizer = load_tokenizer(str(folder))
    (texts,) = collate([[data.text(x, tokenizer=tokenizer)] for x in sentences])
    return encoders, torch.randn(2, 3, 224, 224), texts, d


def test_text_encoders_load_from_a_folder(text_model):
    """By the call that loads the real ones; two texts have two features."""
    encoders, image, texts, d = text_model
    z, _ = MultimodalModel([3, 0], 2, encoders).eval()([image, texts])
    assert [z_j.shape for z_j in z] == [(2, d)] * 2
    assert not torch.allclose(z[1][0], z[1][1])


@pytest.mark.parametrize("training", [False, True])
def test_padding_changes_no_score_and_no_gradient(text_model, training):
    """A text padded to the longest of its batch, and to all that the encoder reads: the same."""
    encoders, image, texts, _ = text_model
    model = MultimodalModel([3, 0], 2, encoders).train(training)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0  # its draws follow the tensors' sizes
    full = 16 if encoders.startswith("clip") else 128
    assert texts.shape[2] < full
    found = []
    for x in (texts, torch.nn.functional.pad(texts, (0, full - texts.shape[2]))):
        _, (logits,) = model([image, x])
        loss = classification_loss(logits, torch.tensor([0, 1]))
        found.append([logits, *grad(loss, list(model.phi[1].parameters()))])
    for short, long in zip(*found):
        assert torch.allclose(short, long, rtol=1e-4, atol=1e-6)
    assert found[0][1].abs().sum() > 0


def test_attention_can_be_differentiated_twice(text_model):
    """Eq. 3 through BERT and CLIP in evaluation mode equals the central difference of the gradient:
    H u, in float64."""
    encoders, image, texts, _ = text_model
    torch.manual_seed(0)
    model = MultimodalModel([3, 0], 2, encoders).double().eval()
    params, image = list(model.parameters()), image.double()

    def losses():
        z, (logits,) = model([image, texts])
        return classification_loss(logits, torch.tensor([0, 1])), modality_matching_loss(z, 0.5)

    u, eps = [torch.randn_like(p) for p in params], 1e-5
    for u_i, p in zip(u, params):
        if any(p is q for q in model.phi[0].parameters()) and encoders.startswith("cnn"):
            u_i.zero_()  # no difference across the kinks of the image encoder's ReLU
    product = make_hvp(*losses(), 0.5, params)(u)
    sides = []
    for sign in (1, -1):
        with torch.no_grad():
            for p, u_i in zip(params, u):
                p += sign * eps * u_i
        sides.append(grad(total_loss(*losses(), 0.5), params))
        with torch.no_grad():
            for p, u_i in zip(params, u):
                p -= sign * eps * u_i
    difference = [(a - b) / (2 * eps) for a, b in zip(*sides)]
    error = sum((a - b).square().sum() for a, b in zip(product, difference)).sqrt()
    assert error < 1e-4 * sum(a.square().sum() for a in product).sqrt()
    with eval_mode(model):
        assert hypergradient(lambda: losses()[0], losses, params, 0.5)[0] is not None


def test_encoder_names_are_filled_up():
    """One for all or one each, with the source that is usual."""
    assert encoder_names("cnn", 3) == ["cnn"] * 3
    assert encoder_names("resnet50,bert", 2) == ["resnet50", "bert:bert-base-uncased"]
    assert encoder_names("resnet50,bert:a:b", 2) == ["resnet50", "bert:a:b"]
    assert encoder_names("clip", 2) == ["clip:openai/clip-vit-base-patch32"] * 2


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("m", [2, 3])
def test_every_fusion_takes_any_number_of_modalities(fusion, m):
    """(B, d) each -> (B, D), every modality has a say, and the score of one needs only that one."""
    torch.manual_seed(0)
    model = MultimodalModel([1] * m, 10, fusion=fusion)
    z = [z_j.requires_grad_() for z_j in features(m)]
    assert model.fusion(z).shape == (5, model.fusion.D)
    assert model.logits(z).shape == (5, 10)
    for gradient in torch.autograd.grad(model.logits(z).square().sum(), z):
        assert gradient.abs().sum() > 0
    for j in range(m):
        score = model.unimodal_logits(z, j)
        gradients = torch.autograd.grad(score.square().sum(), z, materialize_grads=True)
        assert [g.abs().sum() > 0 for g in gradients] == [k == j for k in range(m)]


def test_concat_scores_by_its_block_of_the_classifier():
    """Score of j = W^(j) z^(j) + b, and the fused logits are the sum of the blocks."""
    model, z, d = MultimodalModel([1, 1, 1], 10), features(3), 64
    W, b = model.classifier.weight, model.classifier.bias
    for j in range(3):
        block = z[j] @ W[:, j * d : (j + 1) * d].T + b
        assert torch.allclose(model.unimodal_logits(z, j), block, atol=1e-6)
    blocks = sum(model.unimodal_logits(z, j) for j in range(3))
    assert torch.allclose(blocks - 2 * b, model.logits(z), atol=1e-6)


def test_fusions_compute_their_formulas():
    """Add and FiLM, written out for two modalities."""
    z = [z_j.double() for z_j in features(2)]
    assert torch.equal(FUSIONS["add"](2, 64)(z), z[0] + z[1])
    affine = FUSIONS["affine"](2, 64).double()
    gamma, beta = affine.films[0](z[1]).split(64, dim=1)
    assert torch.allclose(affine(z), z[0] + gamma * z[0] + beta)


def test_a_model_returns_features_and_fused_logits():
    """model(x) = (z, W f(z) + b), as Sec. 3.1 has it."""
    model, x = MultimodalModel([1, 2], 3), [torch.randn(4, c, 16, 16) for c in (1, 2)]
    z, (logits,) = model(x)
    assert all(torch.equal(z_j, phi(x_j)) for z_j, phi, x_j in zip(z, model.phi, x))
    assert torch.equal(logits, model.classifier(model.fusion(z)))
