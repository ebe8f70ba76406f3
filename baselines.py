"""Other methods of Table 1, trained by train.train with alpha = 0: each has its model and losses.

paper               here
Unimodal-1, -2, ..  Unimodal, unimodal_losses
"""

from torch import nn

from losses import classification_loss, modality_matching_loss
from model import MultimodalModel


class Unimodal(MultimodalModel):
    """Each encoder with a classifier of its own; the fused logits are the sum of the modalities'.

    No parameter is shared, so fitting the sum of the losses trains each modality alone.
    """

    def build_head(self, fusion):
        self.classifiers = nn.ModuleList(nn.Linear(self.d, self.n_classes) for _ in self.phi)

    def forward(self, x):
        """x: list of m inputs -> (z, the logits of every modality's classifier, a list)."""
        z = [phi(x_j) for phi, x_j in zip(self.phi, x)]
        return z, [self.unimodal_logits(z, j) for j in range(len(z))]

    def logits(self, z):
        return sum(self.unimodal_logits(z, j) for j in range(len(z)))

    def unimodal_logits(self, z, j):
        return self.classifiers[j](z[j])


def unimodal_losses(z, heads, y, args):
    """(L_CLS summed over the modalities, L_MM); alpha is 0, so L_MM is only logged.

    heads: what Unimodal's forward returns as logits, a list of (B, c).
    """
    l_cls = sum(classification_loss(logits.float(), y, args.smoothing) for logits in heads)
    return l_cls, modality_matching_loss([z_j.float() for z_j in z], args.tau)


BASELINES = {"unimodal": (Unimodal, unimodal_losses)}  # --method: (model, losses of a step)
