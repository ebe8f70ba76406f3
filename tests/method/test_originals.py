"""One step of each rival, against the formulas of its original code, written out here again.

Each test names the repository, its commit and the lines that it follows. Where a choice of ours
differs, CHOICES.md says so, and the test follows the choice.
"""

import copy
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import train
from baselines import class_of, held_out
from data import Batches, Samples
from model import MultimodalModel
from utils.loader import identity

C = 6  # classes


def data_of(n):
    """Vectors of 7 and 5 numbers with labels, n to train and 12 held out."""
    generator = torch.Generator().manual_seed(3)

    def samples(n):
        x = [torch.randn(n, d, generator=generator) for d in (7, 5)]
        return Samples(x, torch.arange(n) % C, [identity] * 2)

    return SimpleNamespace(splits={"train": samples(n), "val": samples(12)})


def made(method, m=2, fusion="concat", **settings):
    """The model of a method, in training mode, and its settings."""
    torch.manual_seed(0)
    args = train.Settings(method=method, fusion=fusion, epochs=10, device="cpu", **settings)
    kind = class_of(method)
    kind.check(args)
    model = kind([7, 5, 9][:m], C, "mlp", fusion)
    model.start(args, data_of(30))
    return model.train(), args


def batch(m=2, seed=1, n=16):
    generator = torch.Generator().manual_seed(seed)
    x = [torch.randn(n, d, generator=generator) for d in [7, 5, 9][:m]]
    return x, torch.randint(C, (n,), generator=generator)


def gradients(model):
    return {
        n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in model.named_parameters()
    }


class Recorder(torch.optim.SGD):
    """SGD with momentum that keeps the gradients of each of its steps."""

    def __init__(self, model):
        super().__init__(model.groups(0.05), 0.05, momentum=0.9)
        self.model, self.steps = model, []

    def step(self):
        self.steps.append(copy.deepcopy(gradients(self.model)))
        super().step()


def step(model, args, x, y):
    """The gradients of the steps of one batch."""
    optimizer = Recorder(model)
    model.inner_step(model, optimizer, x, y, 0.0, args)
    return optimizer.steps


def assert_same(found, reference, *losses):
    """The gradients that were found are those of the sum of losses of a copy."""
    reference.zero_grad()
    sum(losses).backward()
    expected = gradients(reference)
    assert max(g.abs().max() for g in expected.values()) > 1e-3
    for name, g in found.items():
        assert torch.allclose(g, expected[name], atol=1e-5), name


def features(model, x):
    return [phi(x_j) for phi, x_j in zip(model.phi, x)]


def test_heads_are_mmparetos_uniform_baseline():
    """GeWu-Lab/MMPareto_ICML2024 a339db3, uniform_baseline.py: the sum of all cross entropies."""
    model, args = made("heads")
    (x, y), ref = batch(), copy.deepcopy(model)
    (found,) = step(model, args, x, y)
    z = features(ref, x)
    own = [F.cross_entropy(W(z_j), y) for W, z_j in zip(ref.classifiers, z)]
    assert_same(found, ref, F.cross_entropy(ref.classifier(torch.cat(z, 1)), y), *own)


@pytest.mark.parametrize("alpha", [0.1, 0.8])
def test_ogm(alpha):
    """GeWu-Lab/OGM-GE_CVPR2022 343dc1d, main.py:86-147; the whole bias counts for each modality.
    After epoch 50 of 100 it is joint training."""
    model, args = made(f"ogm:{alpha}:0")
    (x, y), late = batch(), copy.deepcopy(model)
    with torch.no_grad():
        model.classifier.weight[:, :64] *= 4
    ref = copy.deepcopy(model)
    (found,) = step(model, args, x, y)
    z = features(ref, x)
    W, b = ref.classifier.weight.chunk(2, dim=1), ref.classifier.bias
    scores = [(z_j @ W_j.T + b).softmax(1)[range(16), y].sum() for z_j, W_j in zip(z, W)]
    ratio = (scores[0] / scores[1]).detach()
    ahead = 0 if ratio > 1 else 1
    k = 1 - torch.tanh(alpha * max(ratio, 1 / ratio))
    assert k < 0.9
    for p in ref.phi[ahead].parameters():
        if p.dim() > 1:
            p.register_hook(lambda g: k * g)
    assert_same(found, ref, F.cross_entropy(ref.classifier(torch.cat(z, 1)), y))
    late.t = torch.tensor(50)
    ref = copy.deepcopy(late)
    (found,) = step(late, args, x, y)
    assert_same(found, ref, F.cross_entropy(ref.classifier(torch.cat(features(ref, x), 1)), y))


@pytest.mark.parametrize("scale, clipped", [(1, False), (20, True)])
def test_agm(scale, clipped):
    """lihong2303/AGM_ICCV2023 5a65542, run/CREMAD_main.py:129-166 and :233-243, model/CREMAD_net.py
    :45-72: three steps; zero features in place of zero inputs. After epoch 20 joint training."""
    model, args = made("agm:1.5")
    with torch.no_grad():
        for phi in model.phi:
            phi[-1].weight *= scale
    mean, optimizer = [0.0, 0.0], Recorder(model)
    for n in (1, 2, 3):
        (x, y), ref = batch(seed=n), copy.deepcopy(model)
        model.inner_step(model, optimizer, x, y, 0.0, args)
        a, v = features(ref, x)
        absent, f = torch.zeros_like(a), lambda *z: ref.classifier(torch.cat(z, 1))
        o_a = (f(a, v) - f(absent, v) + f(a, absent)) / 2
        o_v = (f(a, v) - f(a, absent) + f(absent, v)) / 2
        s = [F.cross_entropy(o, y).item() for o in (o_a, o_v)]
        usual = [math.exp(mean[1 - j] - mean[j]) for j in (0, 1)]
        k = [math.exp(1.5 * min(usual[j] - math.exp(s[1 - j] - s[j]), 10)) for j in (0, 1)]
        mean = [(mean[j] * (n - 1) + s[j]) / n for j in (0, 1)]
        o = sum(k_j * o_j + (1 - k_j) * o_j.detach() for k_j, o_j in zip(k, (o_a, o_v)))
        ref.zero_grad()
        F.cross_entropy(o, y).backward()
        assert (ref.classifier.weight.grad.max() > 1) == clipped
        if clipped:
            torch.nn.utils.clip_grad_norm_(ref.parameters(), 1.0)
        for name, g in optimizer.steps[-1].items():
            assert torch.allclose(g, gradients(ref)[name], atol=1e-5), (n, name)
    model.t = torch.tensor(20)
    ref = copy.deepcopy(model)
    if not clipped:
        loss = F.cross_entropy(ref.classifier(torch.cat(features(ref, x), 1)), y)
        assert_same(step(model, args, x, y)[0], ref, loss)


@pytest.mark.parametrize("conflict", [False, True])
def test_mmpareto(conflict):
    """GeWu-Lab/MMPareto_ICML2024 a339db3, code/MMPareto.py:117-207 and min_norm_solvers.py, with
    one length for an encoder, as in the paper."""
    model, args = made("mmpareto")
    x, y = batch()
    if conflict:
        with torch.no_grad():
            model.classifiers[0].weight.copy_(-3 * model.classifier.weight[:, :64])
            model.classifier.weight.mul_(3)
    else:
        with torch.no_grad():
            for W, part in zip(model.classifiers, model.classifier.weight.chunk(2, dim=1)):
                W.weight.copy_(3 * part)
    ref = copy.deepcopy(model)
    (found,) = step(model, args, x, y)
    z = features(ref, x)
    fused = F.cross_entropy(ref.classifier(torch.cat(z, 1)), y)
    cosines = []
    for j, (phi, W) in enumerate(zip(ref.phi, ref.classifiers)):
        params = list(phi.parameters())
        own = torch.autograd.grad(F.cross_entropy(W(z[j]), y), params, retain_graph=True)
        joint = torch.autograd.grad(fused, params, retain_graph=True)
        g, u = (torch.cat([part.flatten() for part in parts]) for parts in (joint, own))
        cosines.append(F.cosine_similarity(g, u, dim=0).item())
        a = 0.5
        if cosines[-1] <= 0:
            gg, gu, uu = (g @ g).item(), (g @ u).item(), (u @ u).item()
            a = 1.0 if gu >= gg else 0.0 if gu >= uu else (uu - gu) / (gg + uu - 2 * gu)
        h = 2 * a * g + 2 * (1 - a) * u
        h = 1.5 * h * max(1.0, ((g + u).norm() / h.norm()).item())
        ours = torch.cat([found[f"phi.{j}.{n}"].flatten() for n, _ in phi.named_parameters()])
        assert torch.allclose(ours, h, atol=1e-5)
    assert (min(cosines) < 0) == conflict


def test_mla_keeps_p():
    """Cecile-hi/Multimodal-Learning-with-Alternating-Unimodal-Adaptation ab6c184,
    utils/utils.py:20-40: P is of all steps; three batches of three modalities."""
    model, args = made("mla:0.1", m=3)
    optimizer, P = Recorder(model), torch.eye(64)
    for s in range(3):
        (x, y), ref = batch(3, seed=s), copy.deepcopy(model)
        reference = Recorder(ref)
        reference.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        model.inner_step(model, optimizer, x, y, 0.0, args)
        z = features(ref, x)
        for j in range(3):
            reference.zero_grad()
            F.cross_entropy(ref.classifier(z[j]), y).backward()
            ref.classifier.weight.grad = ref.classifier.weight.grad @ P
            reference.step()
            for name, g in optimizer.steps[3 * s + j].items():
                assert torch.allclose(g, reference.steps[-1][name], atol=1e-5), (s, j, name)
            k = P @ z[j].detach().mean(0)
            P = P - torch.outer(k, k) / (0.1 + z[j].detach().mean(0) @ k)
    assert torch.allclose(model.P, P, atol=1e-5) and P.trace() < 60
    o = torch.randn(2, 8, C)
    entropy = torch.special.entr(o.softmax(2)).sum(2)
    w = torch.exp(entropy.max(0).values - entropy)
    fused = ((w / w.sum(0))[..., None] * o).sum(0)
    model.each = lambda z: o
    assert torch.allclose(model.logits(None), fused, atol=1e-5)


def test_reconboost():
    """huacong/ReconBoost 14ab57a, train.py:325-371, models/dynamic_net.py with boost_rate 1: four
    epochs, each with a new optimizer."""
    model, args = made("reconboost:5:1")
    optimizer = Recorder(model)
    for t in range(4):
        (x, y), ref = batch(seed=t), copy.deepcopy(model)
        model.inner_step(model, optimizer, x, y, 0.0, args)
        o = [W(z_j) for W, z_j in zip(ref.classifiers, features(ref, x))]
        if t % 2 == 0:
            k = t // 2
            one_hot, p = F.one_hot(y, C).float(), o[1 - k].detach().softmax(1)
            alone = one_hot * (p - 5) * o[k].log_softmax(1)
            assert_same(optimizer.steps[-1], ref, alone.mean(1).mean())
        else:
            assert_same(optimizer.steps[-1], ref, F.cross_entropy(o[0] + o[1], y))
        assert optimizer.state
        model.end_of_epoch(optimizer, None)
        assert not optimizer.state


def dirichlet_kl(alpha):
    S, ones = alpha.sum(1, keepdim=True), torch.ones(1, C)
    constant = torch.lgamma(S) - torch.lgamma(alpha).sum(1, keepdim=True)
    constant = constant - torch.lgamma(ones.sum(1, keepdim=True))
    digammas = torch.digamma(alpha) - torch.digamma(S)
    return ((alpha - ones) * digammas).sum(1, keepdim=True) + constant


def combined(a, b):
    """Dempster's rule of two Dirichlets, through belief and uncertainty."""
    S = a.sum(1, keepdim=True), b.sum(1, keepdim=True)
    belief, u = [(a - 1) / S[0], (b - 1) / S[1]], [C / S[0], C / S[1]]
    outer = belief[0][:, :, None] * belief[1][:, None, :]
    conflict = outer.sum((1, 2)) - outer.diagonal(dim1=1, dim2=2).sum(1)
    joint = belief[0] * belief[1] + belief[0] * u[1] + belief[1] * u[0]
    joint, both = joint / (1 - conflict)[:, None], u[0] * u[1] / (1 - conflict)[:, None]
    return joint * C / both + 1


@pytest.mark.parametrize("t", [0, 4, 30])
def test_etmc(t):
    """hanmenghan/TMC 08d0ca4, 'ETMC TPAMI'/models/TMC.py, train_ETMC_nyud2.py:51-60."""
    model, args = made("etmc:10")
    model.t = torch.tensor(t)
    (x, y), ref = batch(), copy.deepcopy(model)
    (found,) = step(model, args, x, y)
    z = features(ref, x)
    own = [F.softplus(W(z_j)) + 1 for W, z_j in zip(ref.classifiers, z)]
    pseudo = F.softplus(ref.classifier(torch.cat(z, 1))) + 1
    losses, label = [], F.one_hot(y, C)
    for alpha in [*own, pseudo, combined(combined(*own), pseudo)]:
        S = alpha.sum(1, keepdim=True)
        fit = (label * (torch.digamma(S) - torch.digamma(alpha))).sum(1, keepdim=True)
        kl = dirichlet_kl((alpha - 1) * (1 - label) + 1)
        losses.append((fit + min(1, t / 10) * kl).mean())
    assert_same(found, ref, *losses)


def test_pmr():
    """fanyunfeng-bit/Modal-Imbalance-PMR 3615e48, main_Prototype_grad.py:69-75, 150-185, with the
    paper's beta = clip(1 / rho - 1, 0, 1), where the release has 0 or 1; momentum 0.2."""
    model, args = made("pmr:2:0.2")
    optimizer, usual = Recorder(model), None
    for _ in range(2):  # epochs
        z, labels = [], []
        for s in range(3):
            x, y = batch(seed=s)
            z.append(torch.stack(features(copy.deepcopy(model), x)))
            labels.append(y)
            model.inner_step(model, optimizer, x, y, 0.0, args)
        z, labels = torch.cat(z, 1).detach(), torch.cat(labels)
        new = torch.stack([z[:, labels == k].mean(1) for k in range(C)], 1)
        usual = new if usual is None else 0.2 * usual + 0.8 * new
        model.end_of_epoch(optimizer, None)
        assert torch.allclose(model.means.means, usual, atol=1e-5)
    (x, y), ref = batch(seed=9), copy.deepcopy(model)
    (found,) = step(model, args, x, y)
    z = features(ref, x)
    near = [-torch.stack([(z_j - c).norm(dim=1) for c in m], 1) for z_j, m in zip(z, usual)]
    s = [o.softmax(1)[range(16), y].sum().item() for o in near]
    beta = [min(1, max(0, s[1] / s[0] - 1)), min(1, max(0, s[0] / s[1] - 1))]
    assert max(beta) > 0
    pull = 2 * sum(b * F.cross_entropy(o, y) for b, o in zip(beta, near))
    assert_same(found, ref, F.cross_entropy(ref.classifier(torch.cat(z, 1)), y), pull)


@pytest.mark.parametrize("gamma, scale", [(0.8, 25), (0.02, 4)])
def test_domfn(gamma, scale):
    """njustkmg/DOMFN 77743c2, engines/mosi_trainer.py:60-90, models/encoder.py:76-120, sample by
    sample, with softmax where the release has sigmoid."""
    model, args = made(f"domfn:{gamma}:0.5:0.2")
    with torch.no_grad():
        for W in model.classifiers:
            W.weight.mul_(scale)
    (x, y), ref = batch(), copy.deepcopy(model)
    (found,) = step(model, args, x, y)
    z = features(ref, x)
    o, fused = [W(z_j) for W, z_j in zip(ref.classifiers, z)], ref.classifier(torch.cat(z, 1))
    losses, agreed = [], 0
    for i in range(16):
        p = [o_j[i].softmax(0) for o_j in o]
        penalty = [((p_j - (p[0] + p[1]) / 2) ** 2).max() for p_j in p]
        ce = [F.cross_entropy(o_j[i], y[i]) for o_j in o]
        losses += ce
        if all(q / 0.2 < gamma for q in penalty):
            agreed += 1
            losses += [0.5 * a * a - 0.5 * q for a, q in zip(ce, penalty)]
            losses.append(F.cross_entropy(fused[i], y[i]))
    assert 0 < agreed < 16
    assert_same(found, ref, *(loss / 16 for loss in losses))


def test_domfn_fuses_where_all_modalities_agree():
    """Of three, two alike are near the mean, d = 0.05, the third is not, d = 0.21: no fusion."""
    model = class_of("domfn")([1, 1, 1], 2)
    model.begin(gamma=0.8, tau=0.2)  # the limit is 0.16
    one, other = torch.tensor([[0.0, 1.0]]), torch.tensor([[3.0, 0.0]])
    for logits, fused in ([one, one, other], False), ([one, one, one], True):
        model.each = lambda z, logits=logits: torch.stack(logits)
        z = [torch.ones(1, model.d)] * 3
        expected = MultimodalModel.logits(model, z) if fused else logits[2]  # the surest, or W f(z)
        assert torch.equal(model.logits(z), expected)


@pytest.mark.parametrize("eps, held", [(100, False), (0.01, True)])
def test_greedy_holds_a_gate_only_if_the_speeds_differ_by_more_than_eps(eps, held):
    model, args = made(f"greedy:{eps}:5", fusion="channel")
    for seed in range(3):
        step(model, args, *batch(seed=seed))
    assert (model.speeds.left > 0).item() == held


def test_greedy():
    """nyukat/greedy_multimodal_learning a190e03, src/callbacks.py (Bias_Mitigation_Strong),
    src/balanced_mmtm.py, src/model.py:108, train.py:22-34: 25 steps."""
    model, args = made("greedy:0.01:5", fusion="channel")
    optimizer = Recorder(model)
    sums, mean, n, held, waited, seen = [[0, 0], [0, 0]], [0, 0], 0, None, 0, []
    for s in range(25):
        (x, y), ref = batch(seed=s), copy.deepcopy(model)
        model.inner_step(model, optimizer, x, y, 0.0, args)
        z = features(ref, x)
        joint = torch.relu(ref.fusion.squeeze(torch.cat(z, 1)))
        gates = [torch.sigmoid(excite(joint)) for excite in ref.fusion.excite]
        n += 1
        mean = [m + (g.detach().mean(0) - m) / n for m, g in zip(mean, gates)]
        if held is not None:
            gates[held] = mean[held].expand_as(gates[held])
        seen.append(held)
        o = [W(g * z_j) for W, g, z_j in zip(ref.classifier, gates, z)]
        assert_same(optimizer.steps[-1], ref, *(F.cross_entropy(o_j, y) for o_j in o))
        if held is not None:
            waited += 1
            held = None if waited == 5 else held
            continue
        for j in (0, 1):
            gate = [*ref.fusion.squeeze.parameters(), *ref.fusion.excite[j].parameters()]
            branch = [*ref.phi[j].parameters(), *ref.classifier[j].parameters()]
            for total, params in zip(sums, (gate, branch)):
                size = sum((p**2).sum().item() for p in params)
                total[j] += sum((p.grad**2).sum().item() for p in params) / size
        assert torch.allclose(model.speeds.mu, torch.tensor(sums), rtol=1e-4)
        speed = [math.log10(gate / branch) for gate, branch in zip(*sums)]
        if abs(speed[0] - speed[1]) > 0.01:
            held, waited = 0 if speed[0] > speed[1] else 1, 0
    assert seen.count(None) < 25 and len(set(seen)) > 1
    z, (fused, *o) = model.eval()(x)
    assert torch.equal(fused, (o[0] + o[1]) / 2) and torch.equal(model.logits(z), fused)


def test_greedy_scores_one_modality_with_zeros_for_the_other():
    """A branch's own logits would see the other modality through its gate."""
    model, _ = made("greedy", fusion="channel")
    z = features(model.eval(), batch()[0])
    expected = model.logits([z[0], torch.zeros_like(z[1])])
    assert torch.equal(model.unimodal_logits(z, 0), expected)
    changed = model.unimodal_logits([z[0], z[1] + 1], 0)
    assert torch.equal(changed, expected)


def test_g_blend():
    """facebookresearch/VMZ 4cc542d, c2/lib/models/loss/loss_creator.py:194-199: the weighted sum;
    weights G / O^2 from the losses of one checkpoint, the first against the untrained model."""
    model, args = made("g-blend:2")
    assert model.omega(1, 10) == 0
    parts = model.data.splits["train"], model.data.splits["val"]
    some = parts[0].subset(np.random.default_rng(0).permutation(30)[:12])

    def losses():
        columns = []
        for samples in (some, parts[1]):
            columns.append(held_out(model, [(*samples.sources, samples.y)])[0])
        return torch.stack(columns)

    before, optimizer, w = losses(), Recorder(model), torch.ones(3) / 3
    for t in (1, 2, 3):
        (x, y), ref = batch(seed=t), copy.deepcopy(model)
        model.inner_step(model, optimizer, x, y, 0.0, args)
        z = features(ref, x)
        o = [ref.classifier(torch.cat(z, 1)), *(W(z_j) for W, z_j in zip(ref.classifiers, z))]
        assert_same(
            optimizer.steps[-1], ref, *(w_k * F.cross_entropy(o_k, y) for w_k, o_k in zip(w, o))
        )
        if t == 2:
            now = losses()
            G = before[1] - now[1]
            O = (now[1] - now[0]) - (before[1] - before[0])
            w = G.clamp(min=0) / O**2
            w = w / w.sum()
        weights = model.end_of_epoch(optimizer, None)["weights"]
    assert weights == pytest.approx(w.tolist(), rel=1e-3)
    assert weights != pytest.approx([1 / 3] * 3)


def by_hand(o, y):
    """(CE of half the sum, the release's divergence) of numpy logits (2, n, C)."""

    def softmax(a):
        e = np.exp(a - a.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)

    p, q = softmax(o)
    ce = -np.mean(np.log(softmax((o[0] + o[1]) / 2)[range(len(y)), y]))
    half = (p + q) / 2
    terms = half * (np.log(half) - np.log(p)) + half * (np.log(half) - np.log(q))
    return ce, terms.sum() / len(y) / 2


def test_released_loss():
    """njustkmg/NeurIPS24-LFM ad44fa0, Crema_epoch_learnable.py:37-44, 71, 115-116 and
    model/AudioVideo.py:62-65: the doubled sum, of two linear heads; o_1 + o_2 predicts."""
    model, args = made("released")
    model.double().alpha = torch.tensor(0.7, dtype=torch.float64)
    x, y = batch()
    z = features(model, [x_j.double() for x_j in x])
    o = model.each(z)
    ce, l_mm = by_hand(o.detach().numpy(), y.numpy())
    loss = model.loss(z, None, y, lambda logits: F.cross_entropy(logits, y))
    assert loss.item() == pytest.approx(2 * (0.3 * ce + 0.7 * l_mm), abs=1e-9)
    assert torch.equal(model.logits(z), o[0] + o[1])
    assert torch.equal(model.unimodal_logits(z, 1), model.classifiers[1](z[1]))


@pytest.mark.parametrize("t, lr", [(20, 1e-4), (21, 0.5e-4)])
def test_released_alpha(t, lr):
    """Crema_epoch_learnable.py:59-93, 250-254: before the epoch; the mean over the first tensor of
    H grad L_CLS from the rows of H; lr 1e-4, halved every 20 epochs; 0.05 to 0.95."""
    model, args = made("released")
    x, y = next(Batches(model.data.splits["val"], 8, [3 * 2**32], "cpu").draw(t))
    assert len(y) == 8
    model.double()
    for samples in model.data.splits.values():
        samples.sources = [x_j.double() for x_j in samples.sources]
    model.alpha = torch.tensor(0.7, dtype=torch.float64)
    o = torch.stack([W(phi(x_j.double())) for W, phi, x_j in zip(model.classifiers, model.phi, x)])
    l_cls = F.cross_entropy((o[0] + o[1]) / 2, y)
    p, q = o.softmax(2)
    half = (p + q) / 2
    l_mm = (half * (half.log() - p.log()) + half * (half.log() - q.log())).sum() / 8 / 2
    params = list(model.parameters())
    v = torch.autograd.grad(l_cls, params, retain_graph=True)
    g = torch.autograd.grad(0.3 * l_cls + 0.7 * l_mm, params, create_graph=True)
    product = []
    for entry in g[0].flatten():  # a row of H at a time
        row = torch.autograd.grad(entry, params, retain_graph=True)
        product.append(sum((a * b).sum() for a, b in zip(row, v)).item())
    gradient = sum(product) / len(product)
    norms = {n: b.clone() for n, b in model.named_buffers() if n.startswith("phi")}
    assert model.omega(t, 100) == pytest.approx(0.7 - lr * gradient, abs=1e-12)
    assert abs(gradient) > 1e-6
    assert all(torch.equal(b, dict(model.named_buffers())[n]) for n, b in norms.items())
    for start, end in [(0.96, 0.95), (0.04, 0.05)]:
        model.alpha = torch.tensor(start).double()
        assert model.omega(1, 100) == end


def test_released_quintic():
    """Crema_epoch.py:47-53: 0.795 in epoch 1; the release counts from 0 and trains 200 epochs."""
    model, _ = made("released:quintic")
    assert model.omega(1, 200) == pytest.approx(0.795376296)
    t = 100
    terms = [7.95376296e-01, -3.35472727e-03, -1.22989557e-04, 2.92947416e-06]
    terms += [-2.23835486e-08, 5.39717505e-11]
    assert model.omega(101, 200) == pytest.approx(np.polynomial.Polynomial(terms)(t))
    assert model.omega(3000, 3000) == 1  # clipped


def test_weight_fits_each_prediction():
    """njustkmg/IJCAI19_CMML e249f88, Train.py:252, with predictions in place of features: L_1 + L_2
    beside the fused loss, so that no modality is forgotten."""
    torch.manual_seed(0)
    args = train.Settings(method="constant:0", fusion="weight", encoders="mlp", device="cpu")
    model = train.make_model(args, SimpleNamespace(channels=[7, 5], classes=range(C))).train()
    (x, y), ref = batch(), copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    train.inner_step(model, optimizer, x, y, 0.0, args)
    z = features(ref, x)
    o = [own(z_j) for own, z_j in zip(ref.classifier.own, z)]
    w = torch.stack([ref.fusion.attention(z_j) for z_j in z]).softmax(0)
    fused = w[0] * o[0] + w[1] * o[1]
    assert_same(gradients(model), ref, *(F.cross_entropy(o_k, y) for o_k in [fused, *o]))
