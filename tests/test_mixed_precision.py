"""Image codes under automatic mixed precision agree with those in single precision."""

import pytest
import torch

PRECISIONS = [
    pytest.param("cpu", torch.bfloat16, id="cpu-bfloat16"),
    pytest.param(
        "cuda",
        torch.float16,
        id="cuda-float16",
        marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    ),
]
MARGIN = 0.02  # of activations around 0.5, where rounding decides


@pytest.mark.parametrize(("device", "dtype"), PRECISIONS)
def test_codes_agree(make_model, make_inputs, device, dtype):
    model = make_model("MODEL.DEVICE", device, "MODEL.REGION_DH.BITS", 64).eval()
    single, mixed = [], []
    with torch.no_grad():
        for inputs in make_inputs(*[(64, 96)] * 6):
            single += model([inputs])
            with torch.autocast(device, dtype=dtype):
                mixed += model([inputs])
    activations, rounded = (
        torch.stack([output["image_activation"] for output in outputs])
        for outputs in (single, mixed)
    )
    assert activations.dtype == rounded.dtype == torch.float32
    assert not torch.equal(activations, rounded), "nothing was computed in low precision"
    codes, rounded_codes = (
        torch.stack([output["image_code"] for output in outputs]) for outputs in (single, mixed)
    )
    assert 0.2 < codes.float().mean() < 0.8
    clear = (activations - 0.5).abs() > MARGIN
    assert clear.float().mean() > 0.95
    assert (codes == rounded_codes)[clear].float().mean() >= 0.99
