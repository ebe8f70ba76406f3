"""The model: encoders phi^(j), fusion f, classifier W, b, one modality's score (Sec. 3.1, 4.1).

paper                                      here
z^(j) = phi^(j)(x^(j); Phi^(j))  Sec. 3.1  ENCODERS by name
z = f(z^(1), ..., z^(m))         Sec. 3.1  FUSIONS by name (Table 1; more in utils/fusions.py)
softmax(W z + b)                 Sec. 3.1  MultimodalModel.logits; model(x) returns (z, [logits])
score of one modality            Table 4   MultimodalModel.unimodal_logits

Everywhere z is the list of the m modalities' features, each (B, d).
"""

import functools

import torch
from torch import nn

from utils.cli import SettingsError, check_choice
from utils.fusions import OTHERS, Add
from utils.media import CLIP, IMAGENET, normalize
from utils.modules import GridMean
from utils.pretrained import load_model

SOURCES = {"bert": "bert-base-uncased", "clip": "openai/clip-vit-base-patch32"}  # if none is given


class OverFrames(nn.Module):
    """Normalize, encode each image, average over a clip's frames: (B, [F,] C, H, W) -> (B, d)."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        x = normalize(x, IMAGENET)
        if x.dim() == 4:
            return self.net(x)
        # Paper silent: how the features of a clip's frames become one. Here: their mean.
        return self.net(x.flatten(0, 1)).unflatten(0, x.shape[:2]).mean(1)


# All encoders have the same three parameters, of which each uses its own, and return (module, d).
def cnn(channels, pretrained=False, source=""):
    """Three strided convolutions and a linear map for small inputs: (B, [F,] C, H, W) -> (B, 64).

    It averages into a 4 x 4 grid, not into one number: in a spectrogram, the height is the pitch.
    """
    layers = []
    for c_in, c_out in [(channels, 8), (8, 16), (16, 32)]:
        convolution = nn.Conv2d(c_in, c_out, 3, stride=2, padding=1, bias=False)
        layers += [convolution, nn.BatchNorm2d(c_out), nn.ReLU()]
    layers += [GridMean(4), nn.Linear(32 * 16, 64)]
    return OverFrames(nn.Sequential(*layers)), 64


def resnet(name, channels, pretrained=False, source=""):
    """torchvision's ResNet18 or, for images, ResNet50 (Sec. 4.1): (B, [F,] C, H, W) -> (B, d).

    Its stem takes any number of channels and its classifier is removed; d is 512 or 2048.
    """
    import torchvision

    net = torchvision.models.get_model(name, weights="DEFAULT" if pretrained else None)
    d, net.fc = net.fc.in_features, nn.Identity()
    if channels != 3:
        stem, net.conv1 = net.conv1, nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
        if pretrained:
            weight = stem.weight.data.mean(1, keepdim=True)
            net.conv1.weight.data = weight.expand(-1, channels, -1, -1).clone()
    return OverFrames(net), d


resnet18 = functools.partial(resnet, "resnet18")
resnet50 = functools.partial(resnet, "resnet50")


class Pretrained(nn.Module):
    """A model of transformers: (B, 2, L) ids and mask, or (B, 3, 224, 224) pixels -> (B, d)."""

    def __init__(self, net, output):
        super().__init__()
        self.net, self.output = net, output

    def forward(self, x):
        if x.dtype != torch.int64:
            return self.net(pixel_values=normalize(x, CLIP))[self.output]
        ids, mask = x.unbind(1)  # (B, L) each
        return self.net(input_ids=ids, attention_mask=mask)[self.output]


def bert(channels, pretrained=False, source=""):
    """BERT (Sec. 4.1) by name or local folder: (B, 2, L) -> pooled first token (B, 768)."""
    from transformers import BertModel

    net = load_model(BertModel, source or SOURCES["bert"], fits=channels == 0)
    return Pretrained(net, "pooler_output"), net.config.hidden_size


def clip(channels, pretrained=False, source=""):
    """CLIP's tower for images, or for text (channels 0), by name or folder (Table 5)."""
    from transformers import CLIPTextModelWithProjection, CLIPVisionModelWithProjection

    kind = CLIPVisionModelWithProjection if channels else CLIPTextModelWithProjection
    net = load_model(kind, source or SOURCES["clip"], fits=channels in (0, 3))
    output = "image_embeds" if channels else "text_embeds"
    return Pretrained(net, output), net.config.projection_dim


def mlp(channels, pretrained=False, source=""):
    """Batch norm and two linear layers for vectors: (B, channels) -> (B, 64)."""
    layers = [nn.BatchNorm1d(channels), nn.Linear(channels, 128), nn.ReLU(), nn.Linear(128, 64)]
    return nn.Sequential(*layers), 64


ENCODERS = {"cnn": cnn, "resnet18": resnet18, "resnet50": resnet50, "mlp": mlp}
ENCODERS |= {"bert": bert, "clip": clip}


class Concat(nn.Module):
    """z = [z^(1), ..., z^(m)]: (B, m d)."""

    def __init__(self, m, d):
        super().__init__()
        self.D = m * d

    def forward(self, z):
        return torch.cat(z, dim=1)


class Affine(nn.Module):
    """FiLM: each further modality scales and shifts, (1 + gamma(z^(j))) z + beta(z^(j)): (B, d)."""

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


FUSIONS = {"concat": Concat, "affine": Affine, "add": Add, **OTHERS}

# --- exercise: change below ---
# A fusion of your own becomes a --fusion name by its entry, FUSIONS["mine"] = Mine: a module
# Mine(m, d) whose D is the width of z = forward([z^(1), ..., z^(m)]). A subclass of Add needs only
# its own forward.
# --- end ---


def encoder_names(text, m):
    """`NAME` for all m modalities, or `NAME,NAME,...` -> m names, like `resnet18` or `bert:SOURCE`.

    Raises ValueError for an unknown name or a wrong number of names.
    """
    given = text.split(",")
    if len(given) not in (1, m):
        raise SettingsError(f"--encoders {text} names {len(given)} encoders, expected 1 or {m}")
    names = []
    for entry in given:
        name, _, source = entry.partition(":")
        usual = SOURCES.get(check_choice("encoder", name, ENCODERS))
        if source and not usual:
            raise SettingsError(f"encoder {name!r} takes no source, got {source!r}")
        names.append(f"{name}:{source or usual}" if usual else name)
    return names * (m // len(names))


class MultimodalModel(nn.Module):
    """Encoders, fusion and classifier (Sec. 3.1).

    channels: the input channels of each modality, 0 for text; encoders: the names of encoder_names;
    fusion: a name of FUSIONS; pretrained: start ResNets from torchvision's weights; heads: whether
    each modality has a classifier of its own besides (not in the paper).
    Raises ValueError for an unknown name, OSError for weights that cannot be loaded.
    """

    def __init__(
        self, channels, n_classes, encoders="cnn", fusion="concat", pretrained=False, heads=False
    ):
        super().__init__()
        fusion = FUSIONS[check_choice("fusion", fusion, FUSIONS)]
        phi, widths = [], []
        for c, encoder in zip(channels, encoder_names(encoders, len(channels))):
            name, _, source = encoder.partition(":")
            net, width = ENCODERS[name](c, pretrained, source)
            phi.append(net)
            widths.append(width)
        # Paper silent: all z^(j) have one d, while ResNet50 gives 2048 and BERT 768 numbers. Here:
        # the smallest of the encoders' widths, to which the others are mapped linearly.
        self.d, self.n_classes = min(widths), n_classes
        for j, width in enumerate(widths):
            if width != self.d:
                phi[j] = nn.Sequential(phi[j], nn.Linear(width, self.d))
        self.phi = nn.ModuleList(phi)
        self.build_head(fusion, heads)

    def build_head(self, fusion, heads):
        """Fusion f; classifier W, b; with heads a linear classifier for each modality."""
        self.fusion = fusion(len(self.phi), self.d)
        classifier = getattr(self.fusion, "classifier", nn.Linear)
        self.classifier = classifier(self.fusion.D, self.n_classes)
        own = [nn.Linear(self.d, self.n_classes) for _ in self.phi if heads]
        self.classifiers = nn.ModuleList(own)

    def forward(self, x):
        """x: list of m inputs -> (z, o): features, m of (B, d), and all logits that L_CLS fits.

        o: in the paper [W f(z) + b]; with heads or Weight [W f(z) + b, o_1, ..., o_m]; each (B, c).
        """
        z = [phi(x_j) for phi, x_j in zip(self.phi, x)]
        return z, [self.logits(z), *self.own_logits(z)]

    def logits(self, z):
        """W f(z) + b: (B, c)."""
        return self.classifier(self.fusion(z))

    def own_logits(self, z):
        """[o_1, ..., o_m], (B, c) each, by the modalities' own classifiers; [] without."""
        # --fusion weight has such classifiers itself: their predictions are its parts.
        classifiers = self.classifiers or getattr(self.classifier, "own", [])
        return [classify(z_j) for classify, z_j in zip(classifiers, z)]

    def unimodal_logits(self, z, j):
        """The fused classifier's logits with all features but z^(j) set to zero, or o_j: (B, c)."""
        # Paper silent: the score of one modality of a joint model. With concat this is
        # W^(j) z^(j) + b, as is usual in the audio-video literature.
        if own := self.own_logits(z):
            return own[j]
        alone = [z_k if k == j else torch.zeros_like(z_k) for k, z_k in enumerate(z)]
        return self.logits(alone)
