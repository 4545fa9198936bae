from . import backbone, box_heads, meta_arch, roi_heads  # noqa: F401  (registers components)
