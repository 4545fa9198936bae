"""Images with sets of labels, for the tests of objectives, and plain arithmetic on lists."""

import torch

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
