"""How the files beside this one were made, with regiondh_d2 0.1 (commit 6a6c7f4); kept as a record.

    PYTHONPATH=<checkout of 6a6c7f4> python make.py <checkout of 6a6c7f4> <empty folder>

Photos stood in /tmp/v0_1/photos, which the code files name. They are random pictures of 40 x 30
pixels, and ``clear.png`` is transparent in part, which 0.1 read as if it were not.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

PHOTOS = Path("/tmp/v0_1/photos")
NAMES = ("a.png", "b.jpg", "clear.png", "deep/d.png", "e.png", "größe.png")
OPTS = """
MODEL.DEVICE cpu
MODEL.TIMM.OUT_INDICES [2]
MODEL.TIMM.OUTPUT_STRIDE 0
MODEL.TIMM.HEAD_CONV_DIM 16
MODEL.RPN.IN_FEATURES ["stage2"]
MODEL.ROI_HEADS.IN_FEATURES ["stage2"]
MODEL.ROI_HEADS.SCORE_THRESH_TEST 0.01
MODEL.ROI_BOX_HEAD.FC_DIM 16
MODEL.RPN.CONV_DIMS [8]
MODEL.REGION_DH.BITS 16
MODEL.REGION_DH.LATENT_INIT_STD 0.5
TEST.RETRIEVAL.INSTANCE_MIN_SCORE 0.05
TEST.DETECTIONS_PER_IMAGE 5
"""


def save_photo(path: Path) -> None:
    rng = np.random.default_rng(list(path.name.encode()))
    small = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    photo = Image.fromarray(small).resize((40, 30), Image.Resampling.NEAREST)
    if path.stem == "clear":
        alpha = Image.new("L", photo.size, 255)
        alpha.paste(0, (0, 0, 20, 30))
        photo.putalpha(alpha)
    path.parent.mkdir(parents=True, exist_ok=True)
    photo.save(path)


def main() -> None:
    checkout, out = map(Path, sys.argv[1:])
    shutil.rmtree(PHOTOS.parent, ignore_errors=True)
    for name in NAMES:
        save_photo(PHOTOS / name)
    shutil.copytree(PHOTOS, out / "photos")

    config = str(checkout / "configs/quick_schedules/regiondh_effnetlite0_scenes_instant.yaml")
    opts = [word for line in OPTS.splitlines() if line for word in line.split(" ", 1)]

    def run(tool: str, *arguments: str) -> None:
        subprocess.run(
            [sys.executable, str(checkout / "tools" / f"{tool}.py"), *arguments], check=True
        )

    from regiondh_d2.data import generate_scenes

    generate_scenes(PHOTOS.parent / "scenes", num_database=8, num_queries=3)
    os.environ["DETECTRON2_DATASETS"] = str(PHOTOS.parent)
    training = PHOTOS.parent / "training"
    opts += ["MODEL.WEIGHTS", "", "SOLVER.MAX_ITER", "2", "OUTPUT_DIR", str(training)]
    run("train_net", "--config-file", config, *opts)
    for name in ("config.yaml", "model_final.pth", "last_checkpoint"):
        (out / "training").mkdir(exist_ok=True)
        shutil.copy(training / name, out / "training" / name)

    config = ["--config-file", str(training / "config.yaml")]
    weights = ["MODEL.WEIGHTS", str(training / "model_final.pth")]
    photos = ["--input", str(PHOTOS)]
    run("extract_codes", *config, *photos, "--output", str(out / "photos.h5"), *weights)
    scenes = ["--dataset", "scenes_retrieval", "--output", str(out / "scenes.h5")]
    run("extract_codes", *config, *scenes, "--activations", *weights)
    for engine in ("faiss", "numpy"):
        index = ["--output", str(out / f"index_{engine}"), "--engine", engine]
        run("build_index", str(out / "scenes.h5"), *index)

    # The same extraction, stopped when it has coded two of the photos.
    from regiondh_d2.retrieval import extract

    tool = {"__name__": "tool", "__file__": str(checkout / "tools" / "extract_codes.py")}
    exec((checkout / "tools" / "extract_codes.py").read_text(), tool)
    code_batch = extract.CodeExtractor._code_batch
    batches = 0

    def stop_after_two(self, *arguments):
        nonlocal batches
        batches += 1
        if batches > 2:
            raise KeyboardInterrupt
        return code_batch(self, *arguments)

    extract.CodeExtractor._code_batch = stop_after_two
    output = str(out / "unfinished.h5")
    options = ["--output", output, "--batch-size", "1", "--save-every", "0"]
    assert tool["main"]([*config, *photos, *options, *weights]) == 130
    (out / "unfinished.h5.parts" / "lock").unlink()


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
