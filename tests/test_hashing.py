"""Latent layers, fusion and hash losses against explicit loops and hand-worked cases."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from regiondh_d2.modeling.hashing import (
    FUSION_NORMS,
    ImageHashHead,
    LatentLayer,
    binarize,
    bit_balance_loss,
    cross_proposal_fusion,
    forcing_binary_loss,
    fusion_width,
    label_similarity_loss,
    multi_label_logistic_loss,
    multi_label_softmax_loss,
)


def rand(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_binarize_sets_the_bit_at_exactly_one_half():
    below = np.nextafter(np.float32(0.5), np.float32(0))
    codes = binarize(torch.tensor([[0.0, float(below), 0.5, 1.0]]))
    assert codes.dtype == torch.bool
    assert codes.tolist() == [[False, False, True, True]]


def test_forcing_binary_loss_equals_a_loop():
    a = rand(5, 7)
    total = 0.0
    for n in range(5):
        for k in range(7):
            total -= (a[n, k].item() - 0.5) ** 2
    assert forcing_binary_loss(a).item() == pytest.approx(total / 35, rel=1e-5)


def test_bit_balance_loss_equals_a_loop():
    a = rand(5, 7)
    total = 0.0
    for n in range(5):
        mean = sum(a[n, k].item() for k in range(7)) / 7
        total += (mean - 0.5) ** 2
    assert bit_balance_loss(a).item() == pytest.approx(total / 5, rel=1e-5)


def test_bit_balance_is_within_each_code_and_not_over_the_batch():
    each_bit_is_balanced = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    each_code_is_balanced = torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    assert bit_balance_loss(each_bit_is_balanced).item() == 0.25
    assert bit_balance_loss(each_code_is_balanced).item() == 0.0


def test_ranges_of_the_hash_losses():
    decided, undecided = torch.tensor([[0.0, 1.0, 1.0, 1.0]]), torch.full((3, 4), 0.5)
    assert forcing_binary_loss(decided).item() == -0.25
    assert forcing_binary_loss(undecided).item() == 0.0
    assert bit_balance_loss(decided).item() == 0.0625
    assert bit_balance_loss(undecided).item() == 0.0
    assert bit_balance_loss(torch.ones(3, 4)).item() == 0.25


def test_the_gradient_of_forcing_binary_pushes_away_from_one_half():
    a = torch.tensor([[0.1, 0.45, 0.55, 0.9]], requires_grad=True)
    forcing_binary_loss(a).backward()
    # A descent step goes against the gradient: down below 0.5, up above it.
    assert (-a.grad).sign().tolist() == [[-1, -1, 1, 1]]
    torch.testing.assert_close(a.grad, -2 * (a.detach() - 0.5) / 4)


def test_the_gradient_of_bit_balance_pulls_a_row_to_half_on():
    a = torch.tensor([[0.9, 0.9, 0.3], [0.1, 0.2, 0.3]], requires_grad=True)
    bit_balance_loss(a).backward()
    assert a.grad.sign().tolist() == [[1, 1, 1], [-1, -1, -1]]


@pytest.mark.parametrize("loss", [forcing_binary_loss, bit_balance_loss])
def test_hash_losses_of_no_rows_are_zero_and_reach_the_parameters(loss):
    layer = LatentLayer(4, 6)
    value = loss(layer(torch.zeros(0, 4)))
    value.backward()
    assert value.item() == 0.0
    for parameter in layer.parameters():
        assert parameter.grad is not None
        assert not parameter.grad.any()


def test_logistic_loss_equals_two_way_softmaxes():
    """The author's classifier has two logits a class; only their difference matters."""
    z = torch.randn(4, 5, 2, generator=torch.Generator().manual_seed(0))
    labels = (rand(4, 5) > 0.5).float()
    total = 0.0
    for b in range(4):
        for c in range(5):
            chosen = z[b, c, int(labels[b, c])].item()
            total += math.log(sum(math.exp(v) for v in z[b, c].tolist())) - chosen
    ours = multi_label_logistic_loss(z[..., 1] - z[..., 0], labels)
    # Summed over the classes, not averaged, and averaged over the images.
    assert ours.item() == pytest.approx(total / 4, rel=1e-5)


def test_logistic_loss_of_an_undecided_network():
    assert multi_label_logistic_loss(torch.zeros(3, 20), torch.zeros(3, 20)).item() == (
        pytest.approx(20 * math.log(2), rel=1e-6)
    )


def test_softmax_loss_equals_a_loop_and_ignores_images_without_labels():
    scores = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[1, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 1]])
    total = 0.0
    for b in range(3):
        exps = [math.exp(v) for v in scores[b].tolist()]
        for c in range(4):
            if labels[b, c]:
                total -= math.log(exps[c] / sum(exps)) / int(labels[b].sum())
    assert multi_label_softmax_loss(scores, labels).item() == pytest.approx(total / 3, rel=1e-5)


def test_softmax_loss_of_single_labels_is_torch_cross_entropy():
    scores = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    classes = torch.tensor([0, 3, 2, 2, 1, 0])
    expected = nn.functional.cross_entropy(scores, classes)
    torch.testing.assert_close(
        multi_label_softmax_loss(scores, nn.functional.one_hot(classes, 4)), expected
    )


def test_similarity_loss_equals_a_loop_over_pairs():
    g = torch.Generator().manual_seed(0)
    a = torch.rand(6, 10, generator=g)
    labels = (torch.rand(6, 4, generator=g) < 0.5).float()
    labels[0] = 0.0
    terms = []
    for i in range(6):
        for j in range(6):
            if i == j:
                continue
            code = sum((2 * a[i, k] - 1) * (2 * a[j, k] - 1) for k in range(10)).item() / 10
            li, lj = labels[i].numpy(), labels[j].numpy()
            norms = np.linalg.norm(li) * np.linalg.norm(lj)
            terms.append((code - (li @ lj / norms if norms else 0.0)) ** 2)
    assert label_similarity_loss(a, labels).item() == pytest.approx(np.mean(terms), rel=1e-5)


def test_similarity_loss_is_0_where_distances_follow_the_labels():
    # Equal labels, equal codes; no common label, half of the bits differ.
    a = torch.tensor([[1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 1.0, 0.0]])
    labels = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    assert label_similarity_loss(a, labels).item() == pytest.approx(0.0, abs=1e-6)
    assert label_similarity_loss(a, labels[[0, 2, 2]]).item() == pytest.approx(2 / 3)


@pytest.mark.parametrize("num_images", [0, 1])
def test_similarity_loss_without_a_pair_is_0_and_keeps_the_graph(num_images):
    a = torch.full((num_images, 4), 0.3, requires_grad=True)
    loss = label_similarity_loss(a, torch.ones(num_images, 3))
    loss.backward()
    assert loss.item() == 0.0
    assert not a.grad.any()


@pytest.mark.parametrize("loss", [multi_label_logistic_loss, multi_label_softmax_loss])
def test_image_losses_of_no_images_are_zero(loss):
    scores = torch.zeros(0, 4, requires_grad=True)
    value = loss(scores, torch.zeros(0, 4))
    value.backward()
    assert value.item() == 0.0
    assert scores.grad is not None


def fused_by_loop(p, a, norm, eps=1e-6):
    (num, classes), bits = p.shape, a.shape[1]
    out = []
    for c in range(classes):
        row = [0.0] * bits
        for i in range(num):
            for k in range(bits):
                row[k] += float(p[i, c]) * float(a[i, k])
        if norm == "mean":
            row = [v / num for v in row]
        if norm.startswith("class_"):
            weight = sum(float(p[i, c]) for i in range(num)) + eps
            presence = max(float(p[i, c]) for i in range(num))
            row = [v / weight for v in row]
            if norm in ("class_presence", "class_summary"):
                row = [(v - 0.5) * presence for v in row]
            if norm == "class_summary":
                row = [sum(abs(v) for v in row) / bits]
            row.append(presence)
        out += row
    return torch.tensor(out)


@pytest.mark.parametrize("norm", FUSION_NORMS)
@pytest.mark.parametrize("num", [1, 9])
def test_fusion_equals_a_loop_over_regions_and_classes(norm, num):
    p, a = rand(num, 4).softmax(1), rand(num, 5, seed=1)
    fused = cross_proposal_fusion(p, a, norm)
    assert fused.shape == (fusion_width(4, 5, norm),)
    torch.testing.assert_close(fused, fused_by_loop(p, a, norm), rtol=1e-5, atol=1e-6)


def test_fusion_is_flattened_class_by_class():
    """A region of class 1 alone fills the second row, bits in order."""
    p = torch.tensor([[0.0, 1.0, 0.0]])
    a = torch.tensor([[0.1, 0.2]])
    assert cross_proposal_fusion(p, a).tolist() == pytest.approx([0, 0, 0.1, 0.2, 0, 0])
    tail = cross_proposal_fusion(p, a, "class_mean").tolist()
    assert tail == pytest.approx([0, 0, 0, 0.1, 0.2, 1, 0, 0, 0], abs=1e-5)


@pytest.mark.parametrize("norm", FUSION_NORMS)
def test_fusion_of_no_regions_is_zero_and_keeps_the_graph(norm):
    p, a = torch.zeros(0, 4, requires_grad=True), torch.zeros(0, 5, requires_grad=True)
    fused = cross_proposal_fusion(p, a, norm)
    assert fused.shape == (fusion_width(4, 5, norm),)
    assert not fused.any()
    fused.sum().backward()
    assert p.grad is not None
    assert a.grad is not None


@pytest.mark.parametrize("norm", FUSION_NORMS)
def test_the_gradient_of_fusion_flows_through_both_factors(norm):
    p, a = rand(3, 4).double().requires_grad_(), rand(3, 5, seed=1).double().requires_grad_()
    weights = rand(fusion_width(4, 5, norm), seed=2)

    def value(p, a):
        return (cross_proposal_fusion(p, a, norm) * weights).sum().item()

    (cross_proposal_fusion(p, a, norm) * weights).sum().backward()
    for factor in (p, a):
        for index in ((0, 0), (2, 3)):
            # Float32 inside, so a wide central difference; all three are smooth in this range.
            step = torch.zeros_like(factor)
            step[index] = 1e-2
            up, down = [
                value(*(x.detach() + s * step if x is factor else x.detach() for x in (p, a)))
                for s in (1, -1)
            ]
            assert factor.grad[index].item() == pytest.approx(
                (up - down) / 2e-2, rel=2e-2, abs=2e-4
            )
            assert factor.grad[index].item() != 0.0


@pytest.mark.parametrize("norm", FUSION_NORMS)
def test_fusion_of_several_images_is_that_of_each(norm):
    """Of 4, 0 and 2 regions, filled up with zeros."""
    parts = [(rand(n, 4, seed=n).softmax(1), rand(n, 5, seed=9 + n)) for n in (4, 0, 2)]
    p, a = torch.zeros(3, 4, 4), torch.zeros(3, 4, 5)
    for i, (one, other) in enumerate(parts):
        p[i, : len(one)], a[i, : len(other)] = one, other
    fused = cross_proposal_fusion(p, a, norm, torch.tensor([4, 0, 2]))
    expected = torch.stack([cross_proposal_fusion(*part, norm) for part in parts])
    torch.testing.assert_close(fused, expected, rtol=1e-5, atol=1e-6)
    none = cross_proposal_fusion(p[:, :0], a[:, :0], norm, torch.zeros(3, dtype=torch.int64))
    assert torch.equal(none, torch.zeros_like(fused))


def test_class_mean_does_not_grow_with_the_number_of_regions():
    p, a = rand(6, 4), rand(6, 5, seed=1)
    once = cross_proposal_fusion(p, a, "class_mean")
    thrice = cross_proposal_fusion(p.repeat(3, 1), a.repeat(3, 1), "class_mean")
    torch.testing.assert_close(once, thrice, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        cross_proposal_fusion(p.repeat(3, 1), a.repeat(3, 1)), 3 * cross_proposal_fusion(p, a)
    )


def test_an_unknown_norm_is_refused():
    with pytest.raises(ValueError, match="median"):
        cross_proposal_fusion(rand(2, 3), rand(2, 3), "median")


def test_latent_layer_is_a_linear_layer_and_a_sigmoid():
    torch.manual_seed(0)
    layer = LatentLayer(200, 50, init_std=0.1, init_bias=1.0)
    weight, bias = layer.linear.weight.detach().numpy(), layer.linear.bias.detach().numpy()
    assert layer.bits == 50
    assert weight.std() == pytest.approx(0.1, rel=0.02)
    assert (bias == 1.0).all()
    x = rand(3, 200)
    expected = 1 / (1 + np.exp(-(x.numpy() @ weight.T + bias)))
    np.testing.assert_allclose(layer(x).detach().numpy(), expected, rtol=1e-4)


def test_image_hash_head_classifies_the_activations():
    torch.manual_seed(0)
    head = ImageHashHead(6, 8, 3, init_std=1.0)
    x = rand(2, 6)
    codes = head(x)
    torch.testing.assert_close(codes.activations, head.latent(x))
    expected = codes.activations @ head.classifier.weight.t() + head.classifier.bias
    torch.testing.assert_close(codes.scores, expected)


def test_everything_computes_in_float32_under_autocast():
    """Equal to the last bit to the result without autocast; bfloat16 has 3 digits."""
    torch.manual_seed(0)
    latent = LatentLayer(16, 12, init_std=1.0)
    heads = {n: ImageHashHead(fusion_width(2, 12, n), 12, 2, init_std=0.1) for n in FUSION_NORMS}
    x, p, labels = rand(9, 16), rand(9, 2), torch.tensor([[1.0, 0.0]])

    def everything(norm):
        a = latent(x)
        codes = heads[norm](cross_proposal_fusion(p, a, norm)[None])
        losses = [f(a) for f in (forcing_binary_loss, bit_balance_loss)]
        losses.append(multi_label_logistic_loss(codes.scores, labels))
        losses.append(multi_label_softmax_loss(codes.scores, labels))
        return [a, cross_proposal_fusion(p, a, norm), *codes, *losses]

    for norm in FUSION_NORMS:
        expected = everything(norm)
        with torch.autocast("cpu", torch.bfloat16):
            actual = everything(norm)
        for one, other in zip(actual, expected, strict=True):
            assert one.dtype == torch.float32
            assert torch.equal(one, other)


def test_half_precision_inputs_are_widened():
    a = rand(4, 6).bfloat16()
    assert forcing_binary_loss(a).dtype == torch.float32
    assert bit_balance_loss(a).dtype == torch.float32
    assert cross_proposal_fusion(rand(4, 3).bfloat16(), a).dtype == torch.float32
    assert LatentLayer(6, 2)(a).dtype == torch.float32


def test_normalized_image_head_standardizes_each_input():
    """In training by the batch, at test by the running statistics."""
    head = ImageHashHead(3, 4, 2, normalize=True, init_std=1.0)
    x = rand(6, 3) * torch.tensor([1.0, 100.0, 0.01]) + 5.0
    mean, var = x.mean(0), x.var(0, unbiased=False)
    standard = (x - mean) / (var + head.norm.eps).sqrt()
    torch.testing.assert_close(head(x).activations, head.latent(standard), rtol=1e-4, atol=1e-4)
    running = 0.1 * mean, 0.9 + 0.1 * x.var(0)
    torch.testing.assert_close((head.norm.running_mean, head.norm.running_var), running)
    expected = head.latent((x[:1] - running[0]) / (running[1] + head.norm.eps).sqrt())
    torch.testing.assert_close(head.eval()(x).activations[:1], expected, rtol=1e-4, atol=1e-4)


def test_images_one_at_a_time_give_the_statistics_of_all():
    """Without bias, over many; and in eval mode nothing moves."""
    torch.manual_seed(0)
    head = ImageHashHead(3, 4, 2, normalize=True)
    true_mean, true_std = torch.tensor([5.0, -300.0, 0.01]), torch.tensor([1.0, 40.0, 0.002])
    means, variances = [], []
    for step in range(6000):
        head(true_mean + true_std * torch.randn(1, 3))
        if step >= 200:  # what they started from is forgotten
            means.append(head.norm.running_mean.clone())
            variances.append(head.norm.running_var.clone())
    mean, var = torch.stack(means).mean(0), torch.stack(variances).mean(0)
    torch.testing.assert_close((mean - true_mean) / true_std, torch.zeros(3), atol=0.06, rtol=0.0)
    torch.testing.assert_close(var / true_std.square(), torch.ones(3), atol=0.06, rtol=0.0)
    before = head.norm.running_mean.clone(), head.norm.running_var.clone()
    head.eval()(torch.randn(1, 3))
    torch.testing.assert_close((head.norm.running_mean, head.norm.running_var), before)


def test_one_image_updates_the_statistics_and_is_standardized_by_them():
    head = ImageHashHead(2, 4, 3, normalize=True, init_std=1.0)
    x = torch.tensor([[30.0, -2.0]], requires_grad=True)
    # By hand, with the momentum 0.1, from mean 0 and variance 1.
    mean = torch.tensor([3.0, -0.2])
    var = torch.tensor([0.9 + 0.1 * 0.95 * 900.0, 0.9 + 0.1 * 0.95 * 4.0])
    first = head(x)
    torch.testing.assert_close((head.norm.running_mean, head.norm.running_var), (mean, var))
    expected = head.latent((x - mean) / (var + head.norm.eps).sqrt())
    torch.testing.assert_close(first.activations, expected)
    # The next image moves the statistics before the gradient of the first is asked for.
    (first.scores.sum() + head(torch.zeros(1, 2)).scores.sum()).backward()
    assert x.grad.isfinite().all()
    assert x.grad.abs().sum() > 0.0


def test_dropout_drops_the_first_dimensions_alone_in_training_alone():
    head = ImageHashHead(6, 4, 3, dropout=0.75, dropout_dim=4, init_std=1.0)
    seen = []
    head.latent.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    x = torch.ones(500, 6)
    torch.manual_seed(0)
    head.train()(x)
    head.eval()(x)
    trained, tested = seen
    assert torch.equal(tested, x)
    assert torch.equal(trained[:, 4:], x[:, 4:])
    dropped = trained[:, :4]
    assert set(dropped.unique().tolist()) == {0.0, 4.0}  # the expectation stays
    assert (dropped == 0.0).float().mean().item() == pytest.approx(0.75, abs=0.04)
