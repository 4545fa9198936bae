"""The Region-DH meta-architecture: a GeneralizedRCNN whose outputs carry image codes."""

from dataclasses import dataclass, fields

import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN
from detectron2.modeling.proposal_generator.rrpn import RRPN
from detectron2.utils.events import get_event_storage

from ..utils.errors import RegionDHError
from .cpu_layers import use_cpu_layers
from .hashing import ImageCodes, binarize
from .image_encoders import ENCODED, ImageEncoders

__all__ = ["LossWeights", "RegionDH", "per_image"]


@dataclass(frozen=True)
class LossWeights:
    """Weights of Equations 3 to 7: alpha of the two box losses, beta of the three classification
    losses, gamma of E1 and E2 of each latent layer; and, beyond the paper, of the objective
    for image codes (``MODEL.REGION_DH.OBJECTIVE``) and of the two losses of object codes
    (``MODEL.REGION_DH.OBJECT_CODE``)."""

    alpha: tuple[float, float] = (1.0, 1.0)
    beta: tuple[float, float, float] = (1.0, 1.0, 1.0)
    gamma_h1: tuple[float, float] = (0.05, 10.0)
    gamma_h2: tuple[float, float] = (0.05, 10.0)
    similarity: float = 0.0
    similarity_warmup: int = 0  # iterations in which that weight grows
    object_code: tuple[float, float] = (30.0, 1.0)

    def __post_init__(self):
        for field in fields(self):
            if not isinstance(field.default, tuple):
                continue
            given, wanted = len(getattr(self, field.name)), len(field.default)
            if given != wanted:
                raise RegionDHError(
                    f"MODEL.REGION_DH.LOSS_WEIGHTS.{field.name.upper()} takes {wanted} weights, "
                    f"not {given}"
                )

    def apply(self, losses: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Weight the losses of the RPN and the ROI heads, and join E1 and E2 of each layer.

        Args:
            losses: the unweighted losses of the RPN and of ``RegionDHROIHeads.forward``.

        Returns:
            ``loss_rpn_cls, loss_rpn_loc, loss_cls, loss_box_reg, loss_hash_instance,
            loss_hash_image, loss_cls_image``, in that order, always; then
            ``loss_similarity_image`` where its weight isn't 0, and ``loss_similarity_object`` and
            ``loss_cls_object`` where the ROI heads have an ``object_hash``.
        """
        gamma = self.gamma_h1
        instance = (
            gamma[0] * losses["loss_hash_instance_binary"]
            + gamma[1] * losses["loss_hash_instance_balance"]
        )
        image = self.apply_image(losses)
        if "loss_cls_object" in losses:
            names = ("loss_similarity_object", "loss_cls_object")
            image |= {n: w * losses[n] for n, w in zip(names, self.object_code, strict=True)}
        return {
            "loss_rpn_cls": self.beta[0] * losses["loss_rpn_cls"],
            "loss_rpn_loc": self.alpha[0] * losses["loss_rpn_loc"],
            "loss_cls": self.beta[1] * losses["loss_cls"],
            "loss_box_reg": self.alpha[1] * losses["loss_box_reg"],
            "loss_hash_instance": instance,
            **image,
        }

    def apply_image(self, losses: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """As :meth:`apply`, for the losses of the image alone: ``loss_hash_image``,
        ``loss_cls_image``, and ``loss_similarity_image`` where its weight isn't 0."""
        gamma = self.gamma_h2
        weighted = {
            "loss_hash_image": gamma[0] * losses["loss_hash_image_binary"]
            + gamma[1] * losses["loss_hash_image_balance"],
            "loss_cls_image": self.beta[2] * losses["loss_cls_image"],
        }
        if self.similarity:
            similarity = self._similarity_now() * losses["loss_similarity_image"]
            weighted["loss_similarity_image"] = similarity
        return weighted

    def _similarity_now(self) -> float:
        """The weight in this iteration, which Detectron2's storage of events counts."""
        if not self.similarity_warmup:
            return self.similarity
        done = get_event_storage().iter + 1
        return self.similarity * min(1.0, done / self.similarity_warmup)


@META_ARCH_REGISTRY.register()
class RegionDH(GeneralizedRCNN):
    """Detection and hashing in one network.

    At test each image's dict holds, beside ``instances`` (with ``pred_codes``), ``image_code``
    (bool, (K2,)), ``image_activation`` (float32, (K2,)), ``image_scores`` (float32 logits, (C,))
    and ``image_probabilities`` (their sigmoid).
    """

    # A method that its ROI heads must have, and those that do.
    needs_of_heads = ("forward_hash", "RegionDHROIHeads")
    # Whether training needs annotated objects, not only the labels of an image.
    learns_from_boxes = True

    @configurable
    def __init__(
        self, *, loss_weights: LossWeights, image_encoders: ImageEncoders | None = None, **kwargs
    ):
        """
        Args:
            loss_weights: weights of the loss terms.
            image_encoders: what H2 reads beside the heads' features; None for nothing.
            kwargs: see :class:`detectron2.modeling.GeneralizedRCNN`; ``roi_heads`` must have
                ``forward_hash``, as :class:`RegionDHROIHeads` has.
        """
        super().__init__(**kwargs)
        self.loss_weights = loss_weights
        self.image_encoders = image_encoders
        _refuse_other_parts(self)
        use_cpu_layers(self)

    @classmethod
    def from_config(cls, cfg):
        _refuse_double_weights(cfg)
        node = cfg.MODEL.REGION_DH.LOSS_WEIGHTS
        weights = LossWeights(
            alpha=tuple(node.ALPHA),
            beta=tuple(node.BETA),
            gamma_h1=tuple(node.GAMMA_H1),
            gamma_h2=tuple(node.GAMMA_H2),
            similarity=node.SIMILARITY,
            similarity_warmup=node.SIMILARITY_WARMUP,
            object_code=tuple(node.OBJECT_CODE),
        )
        encoders = ImageEncoders(cfg)
        return {
            **super().from_config(cfg),
            "loss_weights": weights,
            "image_encoders": encoders if len(encoders) else None,
        }

    def forward(self, batched_inputs: list[dict]):
        """As :class:`GeneralizedRCNN`; losses are weighted, outputs at test are the class's."""
        if not self.training:
            return self.inference(batched_inputs)
        if self.proposal_generator is None:
            raise RegionDHError(
                "MODEL.PROPOSAL_GENERATOR.NAME is PrecomputedProposals, and Region-DH trains its "
                "RPN: take RPN"
            )
        encoders = self._encoders_alone()
        if encoders is not None and not self._objects_learn():
            targets = [x["instances"].to(self.device) for x in batched_inputs]
            losses = self.roi_heads.image_losses(encoders(batched_inputs), targets)
            zero = losses["loss_cls"]
            return self.weigh({"loss_rpn_cls": zero, "loss_rpn_loc": zero, **losses})
        return self.weigh(super().forward(batched_inputs))

    def _encoders_alone(self) -> ImageEncoders | None:
        """The image encoders where H2 reads nothing else. Heads of others may not tell."""
        return None if getattr(self.roi_heads, "reads_regions", True) else self.image_encoders

    def _objects_learn(self) -> bool:
        """Whether anything learns but H2 and the image encoders."""
        image = ("image_encoders.", "roi_heads.image_hash.")
        return any(
            parameter.requires_grad
            for name, parameter in self.named_parameters()
            if not name.startswith(image)
        )

    def preprocess_image(self, batched_inputs: list[dict]):
        """As in the base class; in training the images carry what the encoders make of them."""
        images = super().preprocess_image(batched_inputs)
        if self.training and self.image_encoders is not None:
            setattr(images, ENCODED, self.image_encoders(batched_inputs))  # for the heads
        return images

    def head_losses(self, features, proposals, sizes, batched_inputs) -> dict[str, torch.Tensor]:
        """The unweighted losses of the heads alone, of what :meth:`propose` gives and of the ground
        truth in each image's dict."""
        targets = [x["instances"].to(self.device) for x in batched_inputs]
        return self.roi_heads(None, features, proposals, targets)[1]

    def weigh(self, losses: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The losses of training, of the unweighted ones of the RPN and of the heads."""
        return self.loss_weights.apply(losses)

    def inference(self, batched_inputs, detected_instances=None, do_postprocess: bool = True):
        """As :meth:`GeneralizedRCNN.inference`, with image codes where ``do_postprocess`` is True.

        With ``detected_instances`` only their ``pred_codes`` are added, and there is no image code.
        """
        if detected_instances is not None:
            return super().inference(batched_inputs, detected_instances, do_postprocess)
        features, proposals, sizes = self.propose(batched_inputs)
        if do_postprocess:
            return self.describe(features, proposals, sizes, batched_inputs)
        return self.roi_heads.forward_hash(features, proposals, detect=True)[0]

    def describe(self, features, proposals, sizes, batched_inputs) -> list[dict]:
        """The outputs of :meth:`inference`, of what :meth:`propose` gives."""
        instances, codes = self.roi_heads.forward_hash(features, proposals, detect=True)
        results = GeneralizedRCNN._postprocess(instances, batched_inputs, sizes)
        for result, code in zip(results, per_image(codes), strict=True):
            result.update(code)
        return results

    def encode_images(self, batched_inputs: list[dict]) -> list[dict]:
        """Image codes alone: the dicts of :meth:`inference` without ``instances``, in less time."""
        encoders = self._encoders_alone()
        if encoders is not None:
            return per_image(self.roi_heads.image_codes(encoders(batched_inputs)))
        features, proposals, _ = self.propose(batched_inputs)
        return per_image(self.roi_heads.forward_hash(features, proposals, detect=False)[1])

    def propose(self, batched_inputs):
        """Feature maps by name, with ``encoded``, (B, D), where there are image encoders;
        proposals of each image; and image sizes (height, width)."""
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        if self.image_encoders is not None:
            features = {**features, ENCODED: self.image_encoders(batched_inputs)}
        if self.proposal_generator is not None:
            proposals, _ = self.proposal_generator(images, features, None)
        else:  # as in GeneralizedRCNN, precomputed ones come with the inputs, if any are needed
            proposals = [x["proposals"].to(self.device) for x in batched_inputs if "proposals" in x]
        return features, proposals, images.image_sizes


def per_image(codes: ImageCodes) -> list[dict]:
    """The part of each image's output dict that comes from its code."""
    return [
        {
            "image_code": code,
            "image_activation": activation,
            "image_scores": scores,
            "image_probabilities": scores.sigmoid(),
        }
        for code, activation, scores in zip(binarize(codes.activations), *codes, strict=True)
    ]


def _refuse_other_parts(model: RegionDH) -> None:
    """Refuses parts that make no codes or other boxes than the heads take."""
    heads, generator = model.roi_heads, model.proposal_generator
    needed, known = model.needs_of_heads
    if not hasattr(heads, needed):
        raise RegionDHError(
            f"MODEL.ROI_HEADS.NAME {type(heads).__name__} makes no codes for "
            f"MODEL.META_ARCHITECTURE {type(model).__name__}: take {known}"
        )
    anchors = getattr(generator, "anchor_generator", None)
    if isinstance(generator, RRPN) or getattr(anchors, "box_dim", 4) != 4:
        raise RegionDHError(
            f"MODEL.PROPOSAL_GENERATOR.NAME {type(generator).__name__} with "
            f"MODEL.ANCHOR_GENERATOR.NAME {type(anchors).__name__} proposes rotated boxes, and "
            "Region-DH takes upright ones: take RPN and DefaultAnchorGenerator"
        )


def _refuse_double_weights(cfg) -> None:
    for node, key in (
        ("RPN", "LOSS_WEIGHT"),
        ("RPN", "BBOX_REG_LOSS_WEIGHT"),
        ("ROI_BOX_HEAD", "BBOX_REG_LOSS_WEIGHT"),
    ):
        if cfg.MODEL[node][key] != 1.0:
            raise RegionDHError(
                f"MODEL.{node}.{key} is {cfg.MODEL[node][key]}: Region-DH weights its losses by "
                "MODEL.REGION_DH.LOSS_WEIGHTS alone; leave it at 1.0"
            )
