"""What a network costs by part: against formulas, a clock that counts by itself, and the tool."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from regiondh_d2.checkpoint import RegionDHCheckpointer
from regiondh_d2.data.datasets.scenes import generate_scenes
from regiondh_d2.engine import analysis, build_cfg
from regiondh_d2.engine.analysis import PARTS, count_flops, count_parameters, time_parts
from small_network import BACKBONE

ROOT = Path(__file__).parents[1]
CONFIG = str(ROOT / "configs/quick_schedules/regiondh_effnetlite0_scenes_instant.yaml")

SMALL = ["MODEL.TIMM.NAME", BACKBONE]  # is counted sooner


@pytest.fixture
def image():
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (3, 96, 128), generator=generator, dtype=torch.uint8)
    return {"image": pixels, "height": 96, "width": 128}


def numel(*modules):
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def test_parameters(make_model):
    model = make_model()
    heads = model.roi_heads
    assert count_parameters(model) == {
        "backbone": numel(model.backbone),
        "RPN": numel(model.proposal_generator),
        "RoI head": numel(heads.box_pooler, heads.box_head, heads.box_predictor),
        "hash heads": numel(heads.instance_hash, heads.image_hash),
        "other": 0,
    }
    model.extra = nn.Linear(3, 2)
    assert count_parameters(model)["other"] == 8


def count_convolutions(module, run):
    """Multiplications of the convolutions inside a module while something runs."""
    count = 0

    def add(conv, _, output):
        nonlocal count
        count += output.numel() * conv.weight[0].numel()

    handles = [
        child.register_forward_hook(add)
        for child in module.modules()
        if isinstance(child, nn.Conv2d)
    ]
    run()
    for handle in handles:
        handle.remove()
    return count


def test_operations(make_model, image):
    """Against sizes of layers, times what they are applied to."""
    model = make_model().eval()
    counts = count_flops(model, [image])
    for part, module in (("backbone", model.backbone), ("RPN", model.proposal_generator)):
        assert counts[part] == count_convolutions(module, lambda: model([image]))

    _, (proposals,), _ = model.propose([image])
    regions, width, bits, classes, fused = len(proposals), 32, 12, 3, 8
    assert regions > fused
    h1, h2 = regions * width * bits, classes * bits * bits + bits * classes
    assert counts["hash heads"] == h1 + h2
    heads = model.roi_heads
    head = regions * 4 * 4 * heads.box_head.conv_head.weight.numel()
    linear = [heads.box_head.fc[0], heads.box_predictor.cls_score, heads.box_predictor.bbox_pred]
    linear += [layer for layer in heads.box_head.fc[1:] if isinstance(layer, nn.Linear)]
    head += regions * sum(layer.weight.numel() for layer in linear)
    head += fused * classes * bits  # the fusion
    assert counts["RoI head"] == head
    assert counts["other"] == 0


def test_a_network_without_some_parts(make_model, image):
    """SSDH: no proposals, no codes of regions."""
    model = make_model(
        *("MODEL.META_ARCHITECTURE", "ImageHash", "MODEL.ROI_HEADS.NAME", "WholeImageHeads"),
        *("MODEL.PROPOSAL_GENERATOR.NAME", "PrecomputedProposals"),
    ).eval()
    for count in (count_parameters(model), count_flops(model, [image])):
        assert count["RPN"] == 0
        assert min(count["backbone"], count["RoI head"], count["hash heads"]) > 0
    seconds = time_parts(model, [image], repeat=1)
    assert seconds["RPN"] == 0
    assert min(seconds[part] for part in PARTS if part != "RPN") > 0


class Clock:
    """Time passes only where a module of the test says so."""

    def __init__(self):
        self.now = 0.0
        self.slowness = 1.0

    def perf_counter(self):
        return self.now

    def sleep(self, seconds):
        self.now += self.slowness * seconds


class Sleeper(nn.Module):
    def __init__(self, clock, seconds):
        super().__init__()
        self.clock, self.seconds = clock, seconds

    def forward(self):
        self.clock.sleep(self.seconds)


class Heads(Sleeper):
    """Calls the hash heads as Region-DH does: in ``forward_hash``."""

    def __init__(self, clock):
        super().__init__(clock, 8)
        self.instance_hash = Sleeper(clock, 16)
        self.image_hash = Sleeper(clock, 32)

    def forward_hash(self):
        self.instance_hash()
        self.clock.sleep(8)
        self.image_hash()
        self.clock.sleep(0.5)


class Network(nn.Module):
    device = torch.device("cpu")

    def __init__(self, clock):
        super().__init__()
        self.clock = clock
        self.backbone = Sleeper(clock, 2)
        self.proposal_generator = Sleeper(clock, 4)
        self.roi_heads = Heads(clock)
        self.slowness = iter([9.0, 3.0, 1.0, 2.0])

    def forward(self, inputs):
        self.clock.slowness = next(self.slowness)
        self.clock.sleep(1)
        self.backbone()
        self.proposal_generator()
        self.roi_heads.forward_hash()


def test_time(monkeypatch):
    """Of the runs after the first one the fastest counts; a second belongs to one part alone."""
    clock = Clock()
    monkeypatch.setattr(analysis, "time", clock)
    model = Network(clock)
    assert time_parts(model, [], repeat=3) == {
        "backbone": 2.0,
        "RPN": 4.0,
        "RoI head": 8.5,
        "hash heads": 48.0,
        "other": 1.0,
    }
    assert clock.now == 63.5 * (9 + 3 + 1 + 2)
    assert not any({"forward", "forward_hash"} & vars(module).keys() for module in model.modules())


def test_a_network_is_as_before_after_a_failure(make_model):
    model = make_model().eval()
    with pytest.raises(KeyError):
        time_parts(model, [{}])
    assert not any({"forward", "forward_hash"} & vars(module).keys() for module in model.modules())


# --------------------------------------------------------------------------------------------------
# The tool


@pytest.fixture
def tool(load_tool):
    return load_tool("analyze_model")


def test_all_tasks(tool, tmp_path, capsys):
    out = tmp_path / "numbers.json"
    arguments = ["--config-file", CONFIG, "--repeat", "1", "--json", str(out)]
    assert tool.main([*arguments, "MODEL.DEVICE", "cpu"]) == 0
    setting, head, *lines = capsys.readouterr().out.splitlines()
    assert "input 64 x 85, device cpu" in setting
    assert head.split() == ["parameters", "GFLOP", "ms"]
    assert [line[:10].strip() for line in lines] == [*PARTS, "all"]
    written = json.loads(out.read_text())
    for part, line in zip(PARTS, lines, strict=False):
        shown = line[10:].replace(",", "").replace("%", "").split()[::2]
        assert int(shown[0]) == written["parameter"][part]
        assert float(shown[1]) == pytest.approx(written["flop"][part] / 1e9, abs=6e-4)
        assert float(shown[2]) == pytest.approx(written["time"][part] * 1e3, abs=0.06)
    assert lines[-1].count("100 %") == 3
    assert f"{sum(written['parameter'].values()):,d}" in lines[-1]


def test_random_weights_and_noise_are_always_the_same(tool, tmp_path, capsys):
    arguments = ["--config-file", CONFIG, "--tasks", "parameter", "flop", *SMALL]
    shown = []
    for _ in range(2):
        torch.rand(7)
        assert tool.main(arguments) == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1]
    assert "ms" not in shown[0]


def test_a_photo_needs_trained_weights(tool, tmp_path, capsys):
    scenes = generate_scenes(tmp_path / "s", num_database=1, num_queries=1)
    photo = ["--image", str(scenes / "JPEGImages/database_000000.jpg")]
    arguments = ["--config-file", CONFIG, "--tasks", "flop", *photo, *SMALL]
    weights = ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", str(tmp_path / "model.pth")]
    assert tool.main([*arguments, *weights]) == 1
    assert "model.pth: no such file; name a checkpoint" in capsys.readouterr().err
    model = tool.build_network(build_cfg(CONFIG, ["MODEL.DEVICE", "cpu", *SMALL]))
    RegionDHCheckpointer(model, str(tmp_path)).save("model")
    assert tool.main([*arguments, *weights]) == 0
    assert "input 64 x " in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["--tasks", "structure"], ["--repeat", "0"]])
def test_wrong_arguments_exit_2(tool, arguments):
    with pytest.raises(SystemExit) as error:
        tool.main(arguments if not arguments else ["--config-file", CONFIG, *arguments])
    assert error.value.code == 2
