"""What holds for every objective for image codes, and each as a teacher of free activations."""

import numpy as np
import pytest
import torch
from torch import nn

from label_sets import LABEL_SETS, multi_hot, rand
from regiondh_d2.evaluation.ranking_metrics import evaluate_ranking
from regiondh_d2.modeling.center_losses import csq_loss, orthohash_loss
from regiondh_d2.modeling.hash_centers import hash_centers
from regiondh_d2.modeling.hashing import binarize, label_similarity_loss
from regiondh_d2.modeling.losses import HASH_LOSS_REGISTRY, build_loss
from regiondh_d2.modeling.pairwise_losses import (
    dmssph_loss,
    dpsh_loss,
    idhn_loss,
    isdh_soft_loss,
    triplet_loss,
)

NAMES = ["cosine", "idhn", "isdh_soft", "dmssph", "dpsh", "triplet", "csq", "orthohash"]

CENTRAL = ["csq", "orthohash"]

PAIRWISE = ["cosine", "idhn", "isdh_soft", "dmssph", "dpsh"]


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
