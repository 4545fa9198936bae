"""Objectives for image codes against loops over label sets, other formulations and hand-worked
cases; and each of them as a teacher of free activations."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from regiondh_d2.evaluation.ranking_metrics import evaluate_ranking
from regiondh_d2.modeling.hashing import binarize, label_similarity_loss
from regiondh_d2.modeling.losses import (
    HASH_LOSS_REGISTRY,
    build_loss,
    csq_loss,
    dmssph_loss,
    dpsh_loss,
    hadamard_matrix,
    hash_centers,
    idhn_loss,
    isdh_soft_loss,
    majority_centers,
    orthohash_loss,
    triplet_loss,
)

NAMES = ["cosine", "idhn", "isdh_soft", "dmssph", "dpsh", "triplet", "csq", "orthohash"]
CENTRAL = ["csq", "orthohash"]
PAIRWISE = ["cosine", "idhn", "isdh_soft", "dmssph", "dpsh"]
# Label sets of 6 images and 4 classes: equal, overlapping, nested and disjoint ones, and none.
LABEL_SETS = [{0}, {0, 1}, {0, 1}, {1, 2, 3}, {3}, set()]


def multi_hot(sets, num_classes=4):
    labels = torch.zeros(len(sets), num_classes)
    for row, classes in zip(labels, sets, strict=True):
        row[list(classes)] = 1.0
    return labels


def rand(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def pairs_of(activations):
    """Index pairs of different images, and their codes in +-1 as lists of float."""
    codes = [[2.0 * v - 1.0 for v in row] for row in activations.tolist()]
    images = range(len(codes))
    return codes, [(i, j) for i in images for j in images if i != j]


def dot(u, v):
    return sum(x * y for x, y in zip(u, v, strict=True))


def mean(values):
    values = list(values)
    return sum(values) / len(values)


# --------------------------------------------------------------------------------------------------
# Formulas


def test_idhn_equals_a_loop_over_pairs_of_label_sets():
    a, bits = rand(6, 7), 7
    codes, pairs = pairs_of(a)
    terms, hard = [], 0
    for i, j in pairs:
        one, other = LABEL_SETS[i], LABEL_SETS[j]
        shared = len(one & other)
        s = shared / math.sqrt(len(one) * len(other)) if shared else 0.0
        product = dot(codes[i], codes[j]) / bits
        if one == other or not shared:
            hard += 1
            likelihood = 1.0 / (1.0 + math.exp(-5.0 * product))
            terms.append(-math.log(likelihood if shared else 1.0 - likelihood))
        else:
            terms.append(0.1 * bits * ((product + 1) / 2 - s) ** 2)
    assert 0 < hard < len(pairs)
    quantization = mean(abs(abs(v) - 1.0) for code in codes for v in code)
    expected = mean(terms) + 0.1 * quantization
    assert idhn_loss(a, multi_hot(LABEL_SETS)).item() == pytest.approx(expected, rel=1e-5)


def test_idhn_of_a_soft_pair_is_0_where_the_agreeing_bits_are_its_cosine():
    """{0} and {0, 1, 2, 3}: cosine 1/2, so half of the bits agree."""
    labels = multi_hot([{0}, {0, 1, 2, 3}])
    a = torch.tensor([[1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 1.0, 0.0]])
    assert idhn_loss(a, labels).item() == pytest.approx(0.0, abs=1e-6)
    # Equal codes agree in all bits: 4 bits of weight 0.1, squared error 1/4.
    assert idhn_loss(a[[0, 0]], labels).item() == pytest.approx(0.1, rel=1e-5)


def test_isdh_soft_equals_a_loop_over_pairs_of_label_sets():
    a, bits = rand(6, 7), 7
    codes, pairs = pairs_of(a)
    terms = []
    for i, j in pairs:
        one, other = LABEL_SETS[i], LABEL_SETS[j]
        shared = len(one & other)
        s = shared / math.sqrt(len(one) * len(other)) if shared else 0.0
        similar = 1.0 / (1.0 + math.exp(-5.0 * dot(codes[i], codes[j]) / bits))
        hard = one == other or not shared
        terms.append(
            -10.0 * math.log(similar if s else 1.0 - similar) if hard else (s - similar) ** 2
        )
    quantization = mean(abs(abs(v) - 1.0) for code in codes for v in code)
    expected = mean(terms) + 0.1 * quantization
    assert isdh_soft_loss(a, multi_hot(LABEL_SETS)).item() == pytest.approx(expected, rel=1e-5)


def test_isdh_soft_of_a_soft_pair_is_0_where_the_logistic_function_is_its_cosine():
    """{0} and {0, 1, 2, 3}: cosine 1/2, the logistic function of 0, so half of the bits agree."""
    labels = multi_hot([{0}, {0, 1, 2, 3}])
    a = torch.tensor([[1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 1.0, 0.0]])
    assert isdh_soft_loss(a, labels).item() == pytest.approx(0.0, abs=1e-6)
    equal = (0.5 - 1.0 / (1.0 + math.exp(-5.0))) ** 2
    assert isdh_soft_loss(a[[0, 0]], labels).item() == pytest.approx(equal, rel=1e-5)


def test_dmssph_equals_a_loop_over_pairs_of_label_sets():
    a = rand(6, 7)
    codes, pairs = pairs_of(a)
    terms = []
    for i, j in pairs:
        one, other = LABEL_SETS[i], LABEL_SETS[j]
        level = len(one & other) / len(one | other) if one | other else 0.0
        distance = sum((x - y) ** 2 for x, y in zip(codes[i], codes[j], strict=True)) / (4 * 7)
        wanted = 0.5 * (1.0 - level)
        terms.append(abs(distance - wanted) if level else max(wanted - distance, 0.0))
    quantization = mean(abs(abs(v) - 1.0) for code in codes for v in code)
    expected = mean(terms) + 0.01 * quantization
    assert dmssph_loss(a, multi_hot(LABEL_SETS)).item() == pytest.approx(expected, rel=1e-5)


def test_dmssph_of_single_labels_is_the_contrastive_loss_of_dsh():
    a, classes, bits = rand(5, 6), [0, 0, 1, 2, 1], 6
    codes, pairs = pairs_of(a)
    total = 0.0
    for i, j in pairs:
        squared = sum((x - y) ** 2 for x, y in zip(codes[i], codes[j], strict=True))
        similar = classes[i] == classes[j]
        total += 0.5 * squared if similar else 0.5 * max(2 * bits - squared, 0.0)
        total += 0.01 * sum(abs(abs(v) - 1.0) for v in codes[i] + codes[j])
    loss = dmssph_loss(a, multi_hot([{c} for c in classes]))
    assert loss.item() == pytest.approx(total / len(pairs) / (2 * bits), rel=1e-5)


def test_dmssph_gives_each_level_its_distance():
    """8 bits, margin one half: 0, 2 and 4 bits for all, half and none of the labels in common."""
    labels = multi_hot([{0, 1}, {0, 1}, {0}, {3}])
    a = torch.zeros(4, 8)
    a[2, :2] = 1.0
    a[3, 2:6] = 1.0  # 4 bits from the first two, 6 from the third: beyond the margin costs nothing
    assert dmssph_loss(a, labels).item() == pytest.approx(0.0, abs=1e-7)
    a[2, 2] = 1.0  # 3 bits from the first two, one too many for each of 4 of the 12 pairs
    assert dmssph_loss(a, labels).item() == pytest.approx(4 / 12 / 8, rel=1e-5)


def test_dpsh_is_the_negative_log_likelihood_of_the_pairs():
    a = rand(6, 7)
    codes, pairs = pairs_of(a)
    likelihoods = []
    for i, j in pairs:
        similar = 1.0 / (1.0 + math.exp(-dot(codes[i], codes[j]) / 2.0))
        likelihoods.append(similar if LABEL_SETS[i] & LABEL_SETS[j] else 1.0 - similar)
    signs = [[1.0 if v >= 0 else -1.0 for v in code] for code in codes]
    quantization = mean(
        (v - b) ** 2 for u, s in zip(codes, signs, strict=True) for v, b in zip(u, s, strict=True)
    )
    expected = -mean(map(math.log, likelihoods)) + 0.1 * quantization
    assert dpsh_loss(a, multi_hot(LABEL_SETS)).item() == pytest.approx(expected, rel=1e-5)


def test_dpsh_of_two_images():
    """Equal codes of 4 bits have the logit 2; opposite ones -2."""
    similar, dissimilar = multi_hot([{0}, {0, 1}]), multi_hot([{0}, {1}])
    equal, opposite = torch.ones(2, 4), torch.stack([torch.ones(4), torch.zeros(4)])
    right, wrong = math.log(1 + math.exp(-2)), math.log(1 + math.exp(2))
    for a, labels, expected in (
        (equal, similar, right),
        (equal, dissimilar, wrong),
        (opposite, similar, wrong),
        (opposite, dissimilar, right),
    ):
        assert dpsh_loss(a, labels).item() == pytest.approx(expected, rel=1e-5)


def test_triplet_equals_a_loop_over_triplets():
    a, bits = rand(6, 7).tolist(), 7
    terms = []
    for i, j, k in itertools.permutations(range(6), 3):
        nearer, farther = (len(LABEL_SETS[i] & LABEL_SETS[other]) for other in (j, k))
        if nearer > farther:
            to_j, to_k = (
                sum((x - y) ** 2 for x, y in zip(a[i], a[other], strict=True)) / bits
                for other in (j, k)
            )
            terms.append(max(0.0, 0.25 + to_j - to_k))
    assert len(terms) > 10
    loss = triplet_loss(torch.tensor(a), multi_hot(LABEL_SETS))
    assert loss.item() == pytest.approx(mean(terms), rel=1e-5)


def test_triplet_of_three_images():
    """8 bits, margin 2 of them: the third image shares nothing with the first."""
    labels = multi_hot([{0}, {0, 1}, {1}])
    a = torch.zeros(3, 8)
    a[1, :1] = 1.0  # 1 bit from the first
    a[2, :3] = 1.0  # 3 bits from the first, 2 from the second
    # The first image's triplet is right by 2 bits, the third's (2 against 3) by one bit only.
    assert triplet_loss(a, labels).item() == pytest.approx((0 + 1 / 8) / 2, rel=1e-5)
    assert triplet_loss(a[:2], labels[:2]).item() == 0.0


def test_majority_centers_equal_a_count_of_votes():
    centers = hash_centers(4, 8)
    tie_code = torch.tensor([1.0, -1.0] * 4)
    targets = majority_centers(multi_hot(LABEL_SETS), centers, tie_code)
    ties = 0
    for classes, row in zip(LABEL_SETS, targets.tolist(), strict=True):
        for bit, target in enumerate(row):
            ones = sum(1 for c in classes if centers[c, bit] > 0)
            zeros = len(classes) - ones
            ties += ones == zeros
            majority = tie_code[bit].item() if ones == zeros else (1.0 if ones > zeros else -1.0)
            assert target == majority
    assert ties > 8  # more than those of the image without labels


def test_csq_equals_a_loop_over_bits():
    a, centers, tie_code = rand(6, 8), hash_centers(4, 8), torch.tensor([1.0, -1.0] * 4)
    entropies, quantization = [], []
    for n, classes in enumerate(LABEL_SETS[:5]):
        for bit in range(8):
            votes = sum(centers[c, bit].item() for c in classes) or tie_code[bit].item()
            p = a[n, bit].item()
            entropies.append(-math.log(p if votes > 0 else 1.0 - p))
            quantization.append((abs(2 * p - 1) - 1) ** 2)
    expected = mean(entropies) + 0.05 * mean(quantization)
    loss = csq_loss(a, multi_hot(LABEL_SETS), centers, tie_code)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_csq_is_0_at_the_centers_of_single_labels():
    centers = hash_centers(4, 8)
    a = (centers[[2, 0]] > 0).float()
    assert csq_loss(a, multi_hot([{2}, {0}]), centers, centers[0]).item() == pytest.approx(
        0.0, abs=1e-5
    )
    # In the place of each other half of the bits are wrong.
    assert csq_loss(a.flip(0), multi_hot([{2}, {0}]), centers, centers[0]).item() > 5.0


def test_orthohash_equals_a_loop_over_classes():
    a, centers = rand(6, 8), hash_centers(4, 8)
    codes, _ = pairs_of(a)
    terms = []
    for code, classes in zip(codes[:5], LABEL_SETS[:5], strict=True):
        logits = []
        for c in range(4):
            word = centers[c].tolist()
            cosine = dot(code, word) / math.sqrt(dot(code, code) * dot(word, word))
            logits.append(8.0 * (cosine - 0.2 * (c in classes)))
        log_sum = math.log(sum(math.exp(v) for v in logits))
        terms.append(mean(log_sum - logits[c] for c in classes))
    loss = orthohash_loss(a, multi_hot(LABEL_SETS), centers)
    assert loss.item() == pytest.approx(mean(terms), rel=1e-5)


def test_orthohash_of_a_code_on_its_codeword():
    """Orthogonal codewords: cosine 1 to its own and 0 to the 3 others."""
    centers = hash_centers(4, 8)
    a = (centers[[1]] > 0).float()
    expected = math.log(1 + 3 * math.exp(-8.0 * 0.8))
    assert orthohash_loss(a, multi_hot([{1}]), centers).item() == pytest.approx(expected, rel=1e-4)
    # Only the direction of a code counts.
    nearer = 0.5 + 0.1 * (a - 0.5)
    assert orthohash_loss(nearer, multi_hot([{1}]), centers).item() == pytest.approx(
        expected, rel=1e-4
    )


# --------------------------------------------------------------------------------------------------
# Centers


@pytest.mark.parametrize("order", [1, 2, 4, 8, 12, 16, 20, 24, 32, 40, 48, 64, 80, 96, 128])
def test_hadamard_matrices_have_orthogonal_rows_of_signs(order):
    matrix = hadamard_matrix(order).numpy()
    assert set(np.unique(matrix)) <= {-1.0, 1.0}
    np.testing.assert_array_equal(matrix @ matrix.T, order * np.eye(order))


@pytest.mark.parametrize("order", [-4, 0, 3, 6, 28, 56])
def test_an_order_out_of_reach_is_refused(order):
    with pytest.raises(ValueError, match=f"order {order} "):
        hadamard_matrix(order)


def hamming(centers):
    """Distances between different rows of +-1, by comparison."""
    rows = centers.tolist()
    return [
        sum(x != y for x, y in zip(one, other, strict=True))
        for i, one in enumerate(rows)
        for other in rows[:i]
    ]


@pytest.mark.parametrize("bits", [12, 32, 48, 64])
def test_centers_differ_in_half_of_the_bits(bits):
    centers = hash_centers(10, bits)
    assert centers.shape == (10, bits)
    assert set(hamming(centers)) == {bits // 2}
    # Seeds choose other rows and signs.
    assert not torch.equal(centers, hash_centers(10, bits, seed=1))


def test_more_classes_than_bits_take_negatives():
    assert set(hamming(hash_centers(16, 8))) == {4, 8}


@pytest.mark.parametrize("bits", [32, 48])
def test_no_center_and_no_bit_is_nearly_constant(bits):
    """As the first row and the first column of the matrix itself are."""
    matrix, centers = hadamard_matrix(bits), hash_centers(bits, bits)
    for dim in (0, 1):
        assert matrix.sum(dim=dim).abs().max() >= bits - 2
        assert centers.sum(dim=dim).abs().max() < 0.75 * bits


@pytest.mark.parametrize(("num_classes", "bits"), [(80, 32), (80, 48), (20, 36), (20, 30)])
def test_centers_of_other_lengths_are_far_apart(num_classes, bits):
    centers = hash_centers(num_classes, bits)
    assert centers.shape == (num_classes, bits)
    assert set(centers.unique().tolist()) == {-1.0, 1.0}
    assert min(hamming(centers)) >= bits // 3


def test_a_code_too_short_for_its_classes_is_refused():
    with pytest.raises(ValueError, match=r"4 bits .* 20 classes .*MODEL\.REGION_DH\.BITS"):
        hash_centers(20, 4)


# --------------------------------------------------------------------------------------------------
# Modules


def build(name, **options):
    return build_loss(name, **{"bits": 8, "num_classes": 4, **options})


def test_the_registry_holds_the_methods():
    assert [name for name, _ in HASH_LOSS_REGISTRY] == NAMES


def test_an_unknown_objective_is_refused():
    with pytest.raises(ValueError, match=r"OBJECTIVE: 'hinge' isn't one of cosine, idhn, "):
        build("hinge")


def test_the_former_name_of_idhn_is_taken_with_a_warning(caplog):
    a, labels = rand(6, 8), multi_hot(LABEL_SETS)
    assert build("isdh")(a, labels) == idhn_loss(a, labels)
    assert "OBJECTIVE isdh is called idhn now" in caplog.text


def test_the_modules_are_the_functions():
    a, labels, centers = rand(6, 8), multi_hot(LABEL_SETS), hash_centers(4, 8)
    expected = {
        "cosine": label_similarity_loss(a, labels),
        "idhn": idhn_loss(a, labels),
        "isdh_soft": isdh_soft_loss(a, labels),
        "dmssph": dmssph_loss(a, labels),
        "dpsh": dpsh_loss(a, labels),
        "triplet": triplet_loss(a, labels),
        "csq": csq_loss(a, labels, centers, build("csq").tie_code),
        "orthohash": orthohash_loss(a, labels, centers),
    }
    assert {name: build(name)(a, labels) for name in NAMES} == expected
    assert len({v.item() for v in expected.values()}) == len(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_objectives_follow_from_their_seed_and_have_nothing_to_train(name):
    torch.manual_seed(1)
    objective = build(name, seed=3)
    torch.manual_seed(2)
    state = build(name, seed=3).state_dict()
    assert objective.state_dict().keys() == state.keys()
    assert all(torch.equal(objective.state_dict()[key], state[key]) for key in state)
    assert not list(objective.parameters())


@pytest.mark.parametrize("name", CENTRAL)
def test_a_checkpoint_brings_its_centers(name):
    a, labels = rand(6, 8), multi_hot(LABEL_SETS)
    saved, other = build(name, seed=1), build(name, seed=2)
    assert other(a, labels) != saved(a, labels)
    other.load_state_dict(saved.state_dict())
    assert other(a, labels) == saved(a, labels)


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_images_does_not_matter(name):
    a, labels, order = rand(6, 8), multi_hot(LABEL_SETS), [3, 5, 0, 1, 4, 2]
    objective = build(name)
    torch.testing.assert_close(objective(a[order], labels[order]), objective(a, labels))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("num_images", [0, 1])
def test_no_image_and_one_image(name, num_images):
    a = torch.full((num_images, 8), 0.75, requires_grad=True)
    loss = build(name)(a, torch.ones(num_images, 4))
    loss.backward()
    assert a.grad.isfinite().all()
    if num_images == 0:
        assert loss.item() == 0.0
    elif name not in CENTRAL:  # no pair; |u| = 1/2, so what is left is the quantization
        left = {"idhn": 0.1 / 2, "isdh_soft": 0.1 / 2, "dmssph": 0.01 / 2, "dpsh": 0.1 / 4}
        assert loss.item() == pytest.approx(left.get(name, 0.0), rel=1e-6)


@pytest.mark.parametrize("name", CENTRAL)
def test_images_without_labels_add_nothing_to_central_objectives(name):
    a, labels = rand(6, 8).requires_grad_(), multi_hot(LABEL_SETS)
    objective = build(name)
    loss = objective(a, labels)
    loss.backward()
    assert loss.item() == pytest.approx(objective(a[:5], labels[:5]).item(), rel=1e-6)
    assert a.grad[:5].any(dim=1).all()
    assert not a.grad[5].any()
    assert objective(a, torch.zeros(6, 4)).item() == 0.0


@pytest.mark.parametrize("name", PAIRWISE)
def test_images_without_labels_are_driven_away_from_all_others(name):
    a = torch.stack([torch.full((8,), 0.8), torch.full((8,), 0.75)]).requires_grad_()
    build(name)(a, multi_hot([{0}, set()])).backward()
    # A descent step moves the second image, which is below the first, further down.
    assert (a.grad[1] > a.grad[0]).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened(name, dtype):
    a, labels = rand(6, 8).to(dtype), multi_hot(LABEL_SETS)
    loss = build(name)(a, labels.to(dtype))
    assert loss.dtype == torch.float32
    assert loss == build(name)(a.float(), labels)
    assert build(name)(a.float(), labels.bool()) == loss


@pytest.mark.parametrize("name", NAMES)
def test_autocast_changes_nothing(name):
    a, labels = rand(6, 8), multi_hot(LABEL_SETS)
    with torch.autocast("cpu", torch.bfloat16):
        actual = build(name)(a, labels)
    assert actual == build(name)(a, labels)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_gradients_are_finite_at_the_ends_and_in_the_middle(name, dtype):
    a = torch.tensor([0.0, 0.5, 1.0]).repeat(6, 3)[:, :8]
    a[0], a[1], a[2] = 0.0, 0.5, 1.0
    a = a.to(dtype).requires_grad_()
    loss = build(name)(a, multi_hot(LABEL_SETS))
    loss.backward()
    assert loss.isfinite()
    assert a.grad.isfinite().all()
    assert a.grad.any()


@pytest.mark.parametrize("name", NAMES)
def test_gradients_equal_differences(name):
    a, labels = 0.1 + 0.8 * rand(6, 8), multi_hot(LABEL_SETS)
    objective, direction = build(name), 2.0 * rand(6, 8, seed=1) - 1.0
    x = a.clone().requires_grad_()
    objective(x, labels).backward()
    up, down = (objective(a + step * direction, labels).item() for step in (1e-3, -1e-3))
    assert (x.grad * direction).sum().item() == pytest.approx((up - down) / 2e-3, rel=2e-2)


def mean_average_precision(activations, labels):
    """Of the first half of the images as queries in the second."""
    packed = np.packbits(binarize(activations).numpy(), axis=1)
    half = len(packed) // 2
    labels = labels.numpy().astype(np.uint8)
    result = evaluate_ranking(
        packed[:half],
        packed[half:],
        labels[:half],
        labels[half:],
        bits=activations.shape[1],
        topk=half,
    )
    return result.metrics[f"MAP_min@{half}"]


@pytest.mark.parametrize("name", NAMES)
def test_a_few_steps_teach_free_activations(name):
    """12 images, two of each set of labels: the loss falls, and their codes find each other."""
    labels = multi_hot([{0}, {1}, {2}, {3}, {0, 1}, {2, 3}] * 2)
    objective = build(name, bits=16)
    logits = nn.Parameter(torch.randn(12, 16, generator=torch.Generator().manual_seed(0)))
    optimizer = torch.optim.Adam([logits], lr=0.1)
    before = objective(logits.sigmoid(), labels).item()
    ranked_before = mean_average_precision(logits.detach().sigmoid(), labels)
    for _ in range(60):
        optimizer.zero_grad()
        objective(logits.sigmoid(), labels).backward()
        optimizer.step()
    after = objective(logits.sigmoid(), labels).item()
    ranked_after = mean_average_precision(logits.detach().sigmoid(), labels)
    assert after < 0.7 * before
    assert ranked_before < 0.75
    assert ranked_after > 0.9
