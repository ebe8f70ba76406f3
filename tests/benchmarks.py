"""What one alpha update costs, in training steps of the same batch: medians of interleaved pairs, one process.

    python tests/benchmarks.py
"""

import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

import train
from bilevel import evaluating, hypergradient
from losses import total_loss
from model import Model


def seconds(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main(rounds=15):
    data = train.DATASETS["keypad"]()
    s = train.Settings()
    model = Model([1, 1], data["n_classes"])
    theta = list(model.parameters())
    optimizer = torch.optim.SGD(theta, s.lr, s.momentum)
    batches = train.endless(data["train"], s.batch_size, 0, torch.device("cpu"))

    def step():
        model.train()
        optimizer.zero_grad()
        total_loss(*train.losses(model, *next(batches), s), 0.5).backward()
        optimizer.step()

    def update(terms):
        with evaluating(model):
            inner = lambda: train.losses(model, *next(batches), s)  # noqa: E731
            _, report = hypergradient(inner, theta, 0.5, terms=terms, step=1e-4, damping=100.0)
        assert report["terms"] == terms, report  # a series that was cut costs less

    print(f"two cnn encoders, batches of {s.batch_size}, {torch.get_num_threads()} threads")
    for terms in (1, 5, 20):
        step(), update(terms)  # warm up
        ratios = [
            seconds(lambda: update(terms)) / statistics.mean([seconds(step) for _ in range(3)])
            for _ in range(rounds)
        ]
        print(f"{terms:2d} terms: {statistics.median(ratios):5.1f} training steps")


if __name__ == "__main__":
    main()
