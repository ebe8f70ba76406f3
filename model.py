"""The model: encoders phi^(j), fusion f, classifier W, b, and the score of one modality (Sec. 3.1, 4.1).

paper                                      here
z^(j) = phi^(j)(x^(j); Phi^(j))  Sec. 3.1  ENCODERS, by name
z = f(z^(1), ..., z^(m))         Sec. 3.1  FUSIONS, by name (Table 1: Concat, Affine)
softmax(W z + b)                 Sec. 3.1  Model
unimodal                         Table 1   Unimodal
score of one modality            Table 4   Model.score

Everywhere z is the list of the m modalities' features, each (B, d).
"""

import torch
import torchvision
from torch import nn


def cnn(channels):
    """Three strided convolutions and a linear map, for small inputs: (B, channels, H, W) -> (B, 64).

    It averages over a 4 x 4 grid rather than over everything: in a spectrogram the place along H is the pitch.
    """
    layers = []
    for c_in, c_out in [(channels, 8), (8, 16), (16, 32)]:
        layers += [nn.Conv2d(c_in, c_out, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(32 * 16, 64)), 64


def resnet18(channels):
    """ResNet18 with a stem of any number of channels: (B, channels, H, W) -> (B, 512) (Sec. 4.1)."""
    net = torchvision.models.resnet18()
    net.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
    net.fc = nn.Identity()
    return net, 512


ENCODERS = {"cnn": cnn, "resnet18": resnet18}


class Concat(nn.Module):
    """z = [z^(1), ..., z^(m)]: (B, m d)."""

    def __init__(self, m, d):
        super().__init__()
        self.D = m * d

    def forward(self, z):
        return torch.cat(z, dim=1)


class Sum(nn.Module):
    """z = z^(1) + ... + z^(m): (B, d)."""

    def __init__(self, m, d):
        super().__init__()
        self.D = d

    def forward(self, z):
        return sum(z)


class Affine(nn.Module):
    """FiLM: each further modality scales and shifts the first, z = (1 + gamma(z^(j))) z + beta(z^(j)): (B, d)."""

    def __init__(self, m, d):
        super().__init__()
        self.D = d
        self.films = nn.ModuleList(nn.Linear(d, 2 * d) for _ in range(m - 1))

    def forward(self, z):
        fused = z[0]
        for film, z_j in zip(self.films, z[1:]):
            gamma, beta = film(z_j).chunk(2, dim=1)  # (B, d) each
            fused = (1 + gamma) * fused + beta
        return fused


class Gated(nn.Module):
    """z = sum_j sigmoid(G_j [z^(1), ..., z^(m)]) * tanh(H_j z^(j)), the gated multimodal unit: (B, d)."""

    def __init__(self, m, d):
        super().__init__()
        self.D = d
        self.gates = nn.ModuleList(nn.Linear(m * d, d) for _ in range(m))
        self.values = nn.ModuleList(nn.Linear(d, d) for _ in range(m))

    def forward(self, z):
        everything = torch.cat(z, dim=1)
        return sum(
            torch.sigmoid(gate(everything)) * torch.tanh(value(z_j))
            for gate, value, z_j in zip(self.gates, self.values, z)
        )


FUSIONS = {"concat": Concat, "sum": Sum, "affine": Affine, "gated": Gated}


def known(kind, name, names):
    """The name, or a ValueError that lists those there are."""
    if name not in names:
        raise ValueError(f"unknown {kind} {name!r}; choose from {sorted(names)}")
    return name


class Model(nn.Module):
    """Encoders, fusion and classifier (Sec. 3.1).

    encoder: a name of ENCODERS for all modalities; channels: the input channels of each; fusion: a name of FUSIONS.
    Raises ValueError for a name that is not there.
    """

    def __init__(self, channels, n_classes, encoder="cnn", fusion="concat"):
        super().__init__()
        phi, d = zip(*(ENCODERS[known("encoder", encoder, ENCODERS)](c) for c in channels))
        self.phi = nn.ModuleList(phi)
        self.build_head(FUSIONS[known("fusion", fusion, FUSIONS)], d[0], n_classes)

    def build_head(self, fusion, d, n_classes):
        self.fusion = fusion(len(self.phi), d)
        self.classifier = nn.Linear(self.fusion.D, n_classes)  # W, b

    def forward(self, x):
        """x: list of m inputs -> list of m features (B, d)."""
        return [phi(x_j) for phi, x_j in zip(self.phi, x)]

    def logits(self, z):
        """W f(z) + b: (B, c)."""
        return self.classifier(self.fusion(z))

    def fitted(self, z):
        """The logits that L_CLS fits to the labels, a list: here the fused ones alone."""
        return [self.logits(z)]

    def score(self, z, j):
        """The logits of modality j by itself: those of the fused classifier with every other feature zero, (B, c)."""
        # Paper silent: how a modality of a joint model is scored. For concat this is W^(j) z^(j) + b, as is usual.
        return self.logits([z_k if k == j else torch.zeros_like(z_k) for k, z_k in enumerate(z)])


class Unimodal(Model):
    """Each encoder with a classifier of its own (Table 1, Unimodal-1, -2, ...).

    No parameter is shared, so fitting the sum of their losses trains each modality alone. The fused logits are
    the sum of the modalities'.
    """

    def build_head(self, fusion, d, n_classes):
        self.classifiers = nn.ModuleList(nn.Linear(d, n_classes) for _ in self.phi)

    def logits(self, z):
        return sum(self.fitted(z))

    def fitted(self, z):
        return [classifier(z_j) for classifier, z_j in zip(self.classifiers, z)]

    def score(self, z, j):
        return self.classifiers[j](z[j])
