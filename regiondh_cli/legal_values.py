"""Legal values of options, as literals, since the library that defines them can't be imported here.

A test compares them with the library's.
"""

ENGINES = ("faiss", "numpy", "milvus", "shards")
MEMORY_ENGINES = ("faiss", "numpy")
EXPORT_FORMATS = ("parquet", "npz", "pgvector")
GRANULARITIES = ("image", "instance")
RERANKINGS = ("activations", "features", "classes", "both")
QUERY_CLASSES = ("bits", "activations")
AUTO = "auto"  # a calibrated --max-distance
MOST_WEIGHT = 1000  # the largest --blend

# Reference codes that need only the code files, and those that need the network's weights.
REFERENCES = (
    "true_labels",
    "detected_classes",
    "random",
    "lsh",
    "pca",
    "itq",
    "spectral",
)
IMAGE_CLASSES = "image_classes"
ONE_BIT_A_CLASS = ("true_labels", "detected_classes", IMAGE_CLASSES)

ANALYSES = ("parameter", "flop", "time")

LAYOUTS = ("c4", "fpn")
RESNETS = ("resnet50", "resnet101", "resnet152", "resnext50_32x4d", "resnext101_32x8d")
WEIGHT_SOURCES = (
    "imagenet/tf_efficientnet_lite0",
    "imagenet/tf_efficientnet_lite2",
    *(f"torchvision/{network}-{layout}" for network in sorted(RESNETS) for layout in LAYOUTS),
    "torchvision/vgg16",
)

# PASCAL VOC 2007: test queries in trainval.
VOC_QUERIES, VOC_DATABASE = 4952, 5011

# Environment variables, each read by the library, too.
IMPORT_VARIABLE = "REGIONDH_IMPORT"
DATASETS_VARIABLE = "DETECTRON2_DATASETS"
