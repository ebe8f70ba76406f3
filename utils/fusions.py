"""Fusions of Table 1 besides Concat and Affine: modules (m, d) -> z of width D, as in model.py."""

import functools

import torch
from torch import nn


class Add(nn.Module):
    """z = z^(1) + ... + z^(m): (B, d). Table 1's Sum adds predictions instead."""

    def __init__(self, m, d):
        super().__init__()
        self.D = d

    def forward(self, z):
        return sum(z)


class Predictions(nn.ModuleList):
    """A linear classifier per modality, summed: [z^(1), ..., z^(m)] (B, m d) -> (B, c)."""

    def __init__(self, m, D, n_classes):
        super().__init__(nn.Linear(D // m, n_classes) for _ in range(m))

    def forward(self, z):
        return sum(predict(z_j) for predict, z_j in zip(self, z.chunk(len(self), dim=1)))


class Sum(nn.Module):
    """Sum of predictions: sum_j (W^(j) z^(j) + b^(j)); z = [z^(1), ..., z^(m)]: (B, m d).

    A model of the same functions as Concat, W = [W^(1), ..., W^(m)] and b = sum_j b^(j), but its
    weights start larger, and its bias moves m times as fast.
    """

    def __init__(self, m, d):
        super().__init__()
        self.D = m * d
        self.classifier = functools.partial(Predictions, m)  # in place of nn.Linear

    def forward(self, z):
        return torch.cat(z, dim=1)


class Weighted(nn.Module):
    """sum_j w_j o_j from [w_1 z^(1), w_1, ..., w_m z^(m), w_m]: (B, m (d + 1)) -> (B, c).

    own: the linear classifiers o_j = W^(j) z^(j) + b^(j), which L_CLS fits, too.
    """

    def __init__(self, m, D, n_classes):
        super().__init__()
        self.own = nn.ModuleList(nn.Linear(D // m - 1, n_classes) for _ in range(m))

    def forward(self, z):
        parts = zip(self.own, z.chunk(len(self.own), dim=1))
        return sum(part[:, :-1] @ own.weight.T + part[:, -1:] * own.bias for own, part in parts)


class Weight(nn.Module):
    """Weighted predictions [45]: sum_j w_j (W^(j) z^(j) + b^(j)) with w = softmax_j a(z^(j)).

    z = [w_1 z^(1), w_1, ..., w_m z^(m), w_m]: (B, m (d + 1)).
    """

    def __init__(self, m, d):
        super().__init__()
        self.D = m * (d + 1)
        self.classifier = functools.partial(Weighted, m)  # in place of nn.Linear
        self.attention = nn.Sequential(nn.Linear(d, d), nn.ReLU(), nn.Linear(d, 1))  # a

    def forward(self, z):
        # Departs from paper: [45]'s release weighs features, counts the fused loss twice and adds
        # two consistency terms. Table 1 says prediction weighting.
        w = torch.stack([self.attention(z_j) for z_j in z]).softmax(0)  # (m, B, 1)
        return torch.cat([part for w_j, z_j in zip(w, z) for part in (w_j * z_j, w_j)], dim=1)


class Channel(nn.Module):
    """MMTM [22]: z = [g_1 z^(1), ...], g_j = sigmoid(E_j relu(S [z^(1), ..., z^(m)])): (B, m d)."""

    def __init__(self, m, d):
        super().__init__()
        self.D = m * d
        self.squeeze = nn.Linear(m * d, m * d // 2)
        self.excite = nn.ModuleList(nn.Linear(m * d // 2, d) for _ in range(m))

    def gates(self, z):
        """[g_1, ..., g_m], (B, d) each."""
        joint = self.squeeze(torch.cat(z, dim=1)).relu()
        return [excite(joint).sigmoid() for excite in self.excite]

    def forward(self, z):
        # Departs from paper: MMTM gates the maps between the stages of CNNs. Here: the features,
        # so that any encoder will do.
        return torch.cat([g * z_j for g, z_j in zip(self.gates(z), z)], dim=1)


class LSTM(nn.Module):
    """ML-LSTM [30]: the last output of two LSTM layers over z^(1), ..., z^(m) in order: (B, d)."""

    def __init__(self, m, d):
        super().__init__()
        self.D = d
        # Paper silent: how ML-LSTM fuses vectors. Here: the modalities are a sequence.
        self.net = nn.LSTM(d, d, num_layers=2, batch_first=True)

    def forward(self, z):
        with torch.backends.cudnn.flags(enabled=False):  # cuDNN's has no second derivative (Eq. 3)
            return self.net(torch.stack(z, dim=1))[0][:, -1]


OTHERS = {"sum": Sum, "weight": Weight, "channel": Channel, "lstm": LSTM}  # by --fusion
