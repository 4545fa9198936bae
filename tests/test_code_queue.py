"""A queue of codes: the pairs of a batch and a queue are those of a batch as large as both."""

import pytest
import torch

from regiondh_d2.checkpoint import model_fingerprint
from regiondh_d2.modeling.code_queue import CodeQueue
from regiondh_d2.modeling.losses import build_loss
from regiondh_d2.utils.errors import RegionDHError

BITS, CLASSES = 6, 4


def batch(size, seed):
    g = torch.Generator().manual_seed(seed)
    activations = torch.rand(size, BITS, generator=g, requires_grad=True)
    return activations, (torch.rand(size, CLASSES, generator=g) < 0.5).float()


@pytest.mark.parametrize("name", ["cosine", "dpsh", "triplet"])
def test_pairs_with_the_queue_are_those_of_a_larger_batch(name):
    objective, queue = build_loss(name, bits=BITS, num_classes=CLASSES), CodeQueue(5, BITS, CLASSES)
    first, now = batch(5, 0), batch(3, 1)
    queue(*first)
    loss = objective(*queue(*now))
    loss.backward()

    both = torch.cat([now[0], first[0]]).detach().requires_grad_()
    expected = objective(both, torch.cat([now[1], first[1]]))
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    # Only 3 of the 8 images learn, each as much more.
    assert torch.allclose(now[0].grad, both.grad[:3] * 8 / 3, atol=1e-7)
    assert first[0].grad is None


def test_the_last_images_stay():
    queue = CodeQueue(4, BITS, CLASSES)
    batches = [batch(3, seed) for seed in range(4)]
    held = []
    for activations, labels in batches:
        joined, _ = queue(activations, labels)
        assert torch.equal(joined[:3], activations)
        held.append(joined[3:])
    everything = torch.cat([activations.detach() for activations, _ in batches])
    assert [len(x) for x in held] == [0, 3, 4, 4]
    assert torch.equal(held[3], everything[5:9])
    assert torch.equal(queue.labels, torch.cat([labels for _, labels in batches])[-4:])
    assert not queue.activations.requires_grad


def test_without_a_size_a_batch_stays_as_it_is():
    activations, labels = batch(3, 0)
    queue = CodeQueue(0, BITS, CLASSES)
    queue(activations, labels)
    assert queue(activations, labels) == (activations, labels)
    with pytest.raises(RegionDHError, match="CODE_QUEUE: -1 is below 0"):
        CodeQueue(-1, BITS, CLASSES)


def test_a_checkpoint_brings_it_back_and_the_network_does_not_hold_it(make_model):
    queue = CodeQueue(4, BITS, CLASSES)
    queue(*batch(3, 0))
    state = queue.training_state()
    for size, kept in ((4, 3), (2, 2), (0, 0)):
        other = CodeQueue(size, BITS, CLASSES)
        other.load_training_state(state)
        assert torch.equal(other.activations, queue.activations[3 - kept :])
        assert torch.equal(other.labels, queue.labels[3 - kept :])
    with pytest.raises(RegionDHError, match="activations of width 6, and this network's have 8"):
        CodeQueue(4, 8, CLASSES).load_training_state(state)
    plain, queued = make_model(), make_model("MODEL.REGION_DH.CODE_QUEUE", 16)
    assert model_fingerprint(plain) == model_fingerprint(queued)
