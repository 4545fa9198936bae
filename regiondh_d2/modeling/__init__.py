from . import backbone, baselines, box_heads, meta_arch, roi_heads  # noqa: F401  (registers)
