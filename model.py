"""The model: encoders phi^(j), fusion f, classifier W, b, and the score of one modality (Sec. 3.1, 4.1).

paper                                      here
z^(j) = phi^(j)(x^(j); Phi^(j))  Sec. 3.1  ENCODERS, by name
z = f(z^(1), ..., z^(m))         Sec. 3.1  FUSIONS, by name (Table 1: Concat, Affine)
softmax(W z + b)                 Sec. 3.1  Model
unimodal                         Table 1   Unimodal
score of one modality            Table 4   Model.score

Everywhere z is the list of the m modalities' features, each (B, d).
"""

import inspect

import torch
from torch import nn

from media import load_pretrained

IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])  # mean and std of the channels, where white is 1
CLIP = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])


def standardised(x, statistics):
    """Pixels (..., C, H, W) uint8 -> float, by mean and std of each channel, one channel alone to 0..1.

    Numbers stay as they are, but for half precision, which becomes single.
    """
    if x.dtype != torch.uint8:
        return x.float() if x.dtype == torch.float16 else x
    if x.shape[-3] == 1:
        return x / 255
    mean, std = (x.new_tensor(s, dtype=torch.float32).view(-1, 1, 1) for s in statistics)
    return (x / 255 - mean) / std


class OverFrames(nn.Module):
    """A picture's encoder; for a clip the mean of its frames' features: (B, C, H, W) or (B, F, C, H, W) -> (B, d)."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        x = standardised(x, IMAGENET)
        if x.dim() == 4:
            return self.net(x)
        # Paper silent: how the features of a clip's frames become one. Here: their mean.
        return self.net(x.flatten(0, 1)).unflatten(0, x.shape[:2]).mean(1)


def cnn(channels, pretrained=False, source=""):
    """Three strided convolutions and a linear map, for small inputs: (B, [F,] channels, H, W) -> (B, 64).

    It averages over a 4 x 4 grid rather than over everything: in a spectrogram the place along H is the pitch.
    """
    layers = []
    for c_in, c_out in [(channels, 8), (8, 16), (16, 32)]:
        layers += [nn.Conv2d(c_in, c_out, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU()]
    return OverFrames(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(32 * 16, 64))), 64


def resnet(name, channels, pretrained):
    """torchvision's ResNet with a stem of any number of channels, without its classifier."""
    import torchvision

    net = torchvision.models.get_model(name, weights="DEFAULT" if pretrained else None)
    d, net.fc = net.fc.in_features, nn.Identity()
    if channels != 3:
        stem, net.conv1 = net.conv1, nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
        if pretrained:
            net.conv1.weight.data = stem.weight.data.mean(1, keepdim=True).expand(-1, channels, -1, -1).clone()
    return OverFrames(net), d


def resnet18(channels, pretrained=False, source=""):
    """ResNet18 for sound, frames, depth or flow (Sec. 4.1): (B, [F,] channels, H, W) -> (B, 512)."""
    return resnet("resnet18", channels, pretrained)


def resnet50(channels, pretrained=False, source=""):
    """ResNet50 for images (Sec. 4.1): (B, [F,] channels, H, W) -> (B, 2048)."""
    return resnet("resnet50", channels, pretrained)


class Text(nn.Module):
    """A text encoder of transformers: (B, 2, L) token ids and mask -> (B, d)."""

    def __init__(self, net, output):
        super().__init__()
        self.net, self.output = net, output

    def forward(self, x):
        ids, mask = x.unbind(1)  # (B, L) each
        return self.net(input_ids=ids, attention_mask=mask)[self.output]


class Image(nn.Module):
    """CLIP's image encoder: (B, 3, 224, 224) -> (B, d)."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(pixel_values=standardised(x, CLIP)).image_embeds


def whole(kind, source):
    """A pretrained model of transformers with all of its weights, that can be differentiated twice."""
    # The fused attention kernels have no second derivative, which Eq. 3 needs.
    net, found = load_pretrained(kind, source, attn_implementation="eager", output_loading_info=True)
    if found["missing_keys"]:
        raise OSError(f"{source!r} has no weights for {sorted(found['missing_keys'])[0]}, expected a {kind.__name__}")
    return net


def bert(channels, pretrained=False, source="bert-base-uncased"):
    """BERT (Sec. 4.1), by name or local folder: (B, 2, L) -> (B, 768), its pooled first token."""
    from transformers import BertModel

    net = whole(BertModel, source)
    return Text(net, "pooler_output"), net.config.hidden_size


def clip(channels, pretrained=False, source="openai/clip-vit-base-patch32"):
    """CLIP's tower for images (channels 3) or text (channels 0), by name or local folder (Table 5): -> (B, 512)."""
    from transformers import CLIPTextModelWithProjection, CLIPVisionModelWithProjection

    net = whole(CLIPVisionModelWithProjection if channels else CLIPTextModelWithProjection, source)
    return (Image(net) if channels else Text(net, "text_embeds")), net.config.projection_dim


ENCODERS = {"cnn": cnn, "resnet18": resnet18, "resnet50": resnet50, "bert": bert, "clip": clip}


class Concat(nn.Module):
    """z = [z^(1), ..., z^(m)]: (B, m d)."""

    def __init__(self, m, d):
        super().__init__()
        self.D = m * d

    def forward(self, z):
        return torch.cat(z, dim=1)


class Sum(nn.Module):
    """z = z^(1) + ... + z^(m): (B, d). Sums features; Table 1's Sum adds the modalities' predictions."""

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

# --- exercise: change below ---
# A fusion of your own, which becomes a --fusion name by its entry, FUSIONS["mine"] = Mine: a module Mine(m, d) whose
# D is the width of z = forward([z^(1), ..., z^(m)]). A subclass of Sum needs its forward alone.
# --- end ---


def known(kind, name, names):
    """The name, or a ValueError that lists those there are."""
    if name not in names:
        raise ValueError(f"unknown {kind} {name!r}; choose from {sorted(names)}")
    return name


def encoder_names(text, m):
    """`NAME`, for all m modalities, or `NAME,NAME,...`: a list of m names, as `resnet18`, `bert:SOURCE`.

    ValueError for a name that is not there, or for another number of them.
    """
    given = text.split(",")
    if len(given) not in (1, m):
        raise ValueError(f"--encoders {text} names {len(given)} encoders, expected 1 or {m}, one per modality")
    names = []
    for g in given:
        name, _, source = g.partition(":")
        usual = inspect.signature(ENCODERS[known("encoder", name, ENCODERS)]).parameters["source"].default
        if source and not usual:
            raise ValueError(f"encoder {name!r} takes no source, got {source!r}")
        names.append(f"{name}:{source or usual}" if usual else name)
    return names * (m // len(names))


class Model(nn.Module):
    """Encoders, fusion and classifier (Sec. 3.1).

    channels: the input channels of each modality, 0 for text; encoders: a name of ENCODERS for each, perhaps with
    `:SOURCE`; fusion: a name of FUSIONS; pretrained: start ResNets from torchvision's weights.
    Raises ValueError for a name that is not there, OSError for weights that cannot be loaded.
    """

    def __init__(self, channels, n_classes, encoders="cnn", fusion="concat", pretrained=False):
        super().__init__()
        fusion = FUSIONS[known("fusion", fusion, FUSIONS)]
        names = [name.partition(":") for name in encoder_names(encoders, len(channels))]
        phi, widths = zip(*(
            ENCODERS[name](c, pretrained, **({"source": source} if source else {}))
            for c, (name, _, source) in zip(channels, names)
        ))  # fmt: skip
        # Paper silent: all z^(j) have one d, while ResNet50 gives 2048 and BERT 768 numbers. Here: the smallest of the
        # encoders' widths, which the others are mapped to linearly.
        d = min(widths)
        self.phi = nn.ModuleList(
            net if width == d else nn.Sequential(net, nn.Linear(width, d)) for net, width in zip(phi, widths)
        )
        self.build_head(fusion, d, n_classes)

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
