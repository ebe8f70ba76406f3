"""Train with another estimate in place of Eq. 3 (docs/EQ3.md): "mean theta" or "unrolled".

python -m scripts.trial ESTIMATE [flags of train.py]
"""

import collections
import sys

import numpy as np

import train
from scripts.response import State

ESTIMATES = {"mean": lambda state, rng: state.at_mean(rng, draws=4), "unrolled": State.unrolled}


class Trained(State):
    """A state of a run of train.py, for the estimates of scripts.response."""

    def __init__(self, model, optimizer, last, inner, alpha, t, args):
        self.model, self.optimizer, self.last = model, optimizer, last
        self.inner, self.alpha, self.t, self.settings = inner, alpha, t, args
        self.params, self.decay = [*model.parameters()], args.weight_decay
        self.lr = optimizer.param_groups[0]["lr"]

    def batches(self, rng, size=None):
        return self.inner.draw(self.t)


def main(name, *flags):
    last, optimizers, inner_step = collections.deque(maxlen=20), [], train.inner_step

    def remembering(model, optimizer, *rest):
        losses = inner_step(model, optimizer, *rest)
        optimizers[:] = [optimizer]
        last.append([p.detach().clone() for p in model.parameters()])
        return losses

    def alpha_gradient(model, inner, outer, alpha, t, args):
        state = Trained(model, optimizers[0], last, inner, alpha, t, args)
        value, _ = ESTIMATES[name](state, np.random.default_rng([args.seed, t]))
        return value, {}

    train.inner_step, train.alpha_gradient = remembering, alpha_gradient
    return train.main(flags)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
