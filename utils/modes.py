"""A model's modes: evaluation for a while, as it was afterwards."""

from contextlib import contextmanager

from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def eval_mode(model, batch_statistics=False):
    """Put the model in eval mode; restore every module's mode on exit.

    batch_statistics: batch norm normalizes with the statistics of the batch, as in training, and
    updates nothing.
    """
    modes = {module: module.training for module in model.modules()}
    tracked = {norm: norm.track_running_stats for norm in modes if isinstance(norm, _BatchNorm)}
    model.eval()
    if batch_statistics:
        for norm in tracked:
            norm.training, norm.track_running_stats = True, False
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for norm, track in tracked.items():
            norm.track_running_stats = track
