"""The cost of a network by part: parameters, multiplications, time.

Every parameter, operation and second belongs to exactly one part:

========== =========================================================================
backbone   the feature maps
RPN        the proposals
RoI head   pooling, box head, classes and boxes, NMS, the fusion of regions
hash heads H1 and H2 with its classifier
other      the rest: image encoders, normalizing and padding images, scaling boxes back
========== =========================================================================
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from detectron2.utils.analysis import FlopCountAnalysis
from torch import nn

__all__ = ["PARTS", "count_flops", "count_parameters", "time_parts"]

# Modules by part. A module inside a module of another part counts only for the later part.
_MODULES = {
    "backbone": ("backbone",),
    "RPN": ("proposal_generator",),
    "RoI head": ("roi_heads",),
    "hash heads": ("roi_heads.instance_hash", "roi_heads.image_hash"),
}
_OTHER = "other"
PARTS = (*_MODULES, _OTHER)


def count_parameters(model: nn.Module) -> dict[str, int]:
    """Number of parameters by part, buffers such as a fixed batch norm's left out."""
    counts = dict.fromkeys(PARTS, 0)
    for name, parameter in model.named_parameters():
        inside = (
            part
            for part, modules in _MODULES.items()
            if name.startswith(tuple(f"{module}." for module in modules))
        )
        counts[max(inside, key=PARTS.index, default=_OTHER)] += parameter.numel()
    return counts


@torch.no_grad()
def count_flops(model: nn.Module, inputs: list[dict]) -> dict[str, int]:
    """Floating-point operations of inference by part, as fvcore counts them.

    A multiplication with its addition is one operation; activations, pooling, sorting and NMS don't
    count.

    Args:
        model: in evaluation mode.
        inputs: a batch.
    """
    analysis = FlopCountAnalysis(model, inputs)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    by_module = analysis.tracer_warnings("none").by_module()

    def count(modules: Iterable[str]) -> int:
        return round(sum(by_module[f"model.{module}"] for module in modules))

    total = round(by_module[""])
    counts = {part: count(modules) for part, modules in _MODULES.items()}
    # fvcore counts the fusion outside all modules, since it runs in `forward_hash`, not in
    # `forward`.
    fusion = total - count(name for name, _ in model.named_children())
    counts["RoI head"] += fusion - counts["hash heads"]
    return {**counts, _OTHER: total - sum(counts.values())}


@torch.no_grad()
def time_parts(model: nn.Module, inputs: list[dict], repeat: int = 10) -> dict[str, float]:
    """Seconds of inference by part: the fastest of several runs, after a warm-up.

    Args:
        model: in evaluation mode; unchanged afterwards.
        inputs: a batch.
        repeat: number of runs.
    """
    device: Any = model.device  # which Detectron2's networks have, if not all modules
    watch = _Stopwatch(device)
    with _watched(model, watch):
        model(inputs)
        runs = [watch.run(lambda: model(inputs)) for _ in range(repeat)]
    return min(runs, key=lambda seconds: sum(seconds.values()))


class _Stopwatch:
    """Divides the time of a run among nested parts; the innermost part counts."""

    def __init__(self, device: torch.device):
        self._device = device
        self._open = [_OTHER]
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._last = 0.0

    def run(self, work: Callable[[], object]) -> dict[str, float]:
        """Seconds by part of some work."""
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._last = self._now()
        work()
        self._stop()
        return self._seconds

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the time inside for a part."""
        self._stop()
        self._open.append(name)
        try:
            yield
        finally:
            self._stop()
            self._open.pop()

    def _stop(self) -> None:
        now = self._now()
        self._seconds[self._open[-1]] += now - self._last
        self._last = now

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


@contextmanager
def _watched(model: nn.Module, watch: _Stopwatch) -> Iterator[None]:
    """Times the modules of the parts with a stopwatch.

    Their methods are replaced meanwhile. Forward hooks would miss the ROI heads, since Region-DH
    calls their ``forward_hash``. ``torch.profiler`` would need ranges in the network's own code,
    and the time of nested parts would have to be subtracted.
    """
    modules = dict(model.named_modules())
    with ExitStack() as undo:
        for part, names in _MODULES.items():
            for module in (modules[name] for name in names if name in modules):
                for method in {"forward", "forward_hash"} & set(dir(module)):
                    setattr(module, method, watch.part(part)(getattr(module, method)))
                    undo.callback(delattr, module, method)
        yield
