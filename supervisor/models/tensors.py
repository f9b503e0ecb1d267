"""What a model is, by the names of its tensors. Pure.

Sources of the names: ``model_detection.py``, ``sd.py``, ``controlnet.py``, ``clip_vision.py``,
``audio_encoders.py``, ``nodes_model_patch.py`` and ``nodes_hunyuan.py`` of Comfy-Org/ComfyUI;
the architectures of chaiNNer-org/spandrel, which loads upscalers; LoRAs as kohya-ss, diffusers,
PEFT, LyCORIS, XLabs and OneTrainer write them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cached_property

_LORA = re.compile(
    r"\.lora_(?:up|down|A|B|mid)\.(?:default\.)?weight$|\.lora_(?:A|B)$|\.dora_scale$"
    r"|_?lora[12]?\.(?:up|down)\.weight$|\.lora_linear_layer\.(?:up|down)\.weight$"
    r"|\.hada_w[12]_[ab]$|\.lokr_w[12](?:_[ab])?$|\.oft_blocks$|\.glora\.|\.boft_"
)
_LORA_STARTS = ("lora_unet_", "lora_te", "lora_prior_", "lora_transformer_", "lycoris_")

# All of the names of one line must be there. One that ends in a dot is the beginning of a name.
Marks = tuple[tuple[str, ...], ...]

_PARTS: Marks = (("id_encoder.",), ("lora_weights.",))
_CONTROL: Marks = (
    ("control_model.",),
    ("controlnet_cond_embedding.",),
    ("controlnet_blocks.",),
    ("controlnet_down_blocks.",),
    ("controlnet_x_embedder.",),
    ("input_hint_block.",),
    ("zero_convs.",),
    ("lora_controlnet",),
    ("before_proj.", "after_proj_list."),
    ("adapter.body.",),
    ("body.0.resnets.", "conv_in."),
    ("body.0.block1.", "conv_in."),
    ("body.0.in_conv.",),
)
_MODEL_PATCH: Marks = (
    ("controlnet_blocks.0.y_rms.",),
    ("control_all_x_embedder.",),
    ("feature_embedder.",),
    ("siglip2_adapter.",),
)
_VAE: Marks = (
    ("decoder.conv_in.", "encoder.conv_in."),
    ("decoder.up.", "decoder.conv_in."),
    ("decoder.up_blocks.", "decoder.conv_in."),
    ("decoder.upsamples.",),
    ("decoder.unpatcher3d.",),
    ("encoder.patcher3d.",),
    ("decoder.blocks.2.blocks.3.stack.",),
    ("blocks.2.blocks.3.stack.",),
    ("layers.4.layers.1.attn_block.",),
    ("encoder.layers.4.layers.1.attn_block.",),
    ("vquantizer.",),
    ("decoder.layers.1.layers.0.beta",),
    ("vocoder.backbone.",),
    ("geo_decoder.",),
    ("first_stage_model.",),
)
_TINY_VAE: Marks = (
    ("taesd_decoder.",),
    ("taesd_encoder.",),
    ("1.weight", "3.conv.0.weight", "3.conv.2.weight"),
    ("decoder.1.weight", "decoder.3.conv.0.weight"),
    ("encoder.0.weight", "encoder.2.conv.0.weight"),
)
_AUDIO: Marks = (
    ("wav2vec2.",),
    ("feature_extractor.conv_layers.",),
    ("model.encoder.embed_positions.", "model.decoder.layers."),
    ("model.encoder.conv1.",),
    ("encoder.conv1.", "encoder.layers."),
)
_TEXT: Marks = (
    ("text_model.encoder.",),
    ("transformer.text_model.",),
    ("encoder.block.",),
    ("transformer.resblocks.",),
    ("model.embed_tokens.",),
    ("model.layers.", "model.norm."),
    ("model.language_model.",),
    ("language_model.model.",),
    ("token_embd.",),
    ("enc.blk.",),
    ("token_embedding.", "blocks.0.pos_embedding."),
)
_DIFFUSION: Marks = (
    ("model.diffusion_model.",),
    ("diffusion_model.",),
    ("double_blocks.",),
    ("single_blocks.",),
    ("joint_blocks.",),
    ("transformer_blocks.",),
    ("single_transformer_blocks.",),
    ("double_stream_blocks.",),
    ("visual_transformer_blocks.",),
    ("noise_refiner.",),
    ("context_refiner.",),
    ("input_blocks.",),
    ("double_layers.",),
    ("net.blocks.",),
    ("vace_blocks.",),
    ("patch_embedding.", "blocks."),
    ("blk.", "patch_embedding."),
    ("down_blocks.", "up_blocks.", "time_embedding."),
    ("clf.1.weight", "down_blocks."),
    ("transformer.rotary_pos_emb.",),
    ("mlp_t5.", "blocks."),
    ("t5_yproj.",),
    ("t_block.", "blocks."),
    ("blocks.block0.blocks.",),
    ("t_embedder.", "blocks.0.mlp.layer1."),
    ("x_embedder.", "blocks.0.self_attn.", "final_layer."),
    ("x_embedder.", "blocks.0.mlp.layer1."),
)
_CHECKPOINT: Marks = (
    *(
        (root, part)
        for root in ("model.diffusion_model.", "diffusion_model.")
        for part in (
            "first_stage_model.",
            "cond_stage_model.",
            "conditioner.",
            "text_encoders.",
            "vae.",
        )
    ),
    ("pretransform.", "model.model."),
    ("conditioner.main_image_encoder.", "model."),
)
_VISION: Marks = (
    ("vision_model.encoder.",),
    ("vision_model.embeddings.",),
    ("visual.transformer.",),
    ("embeddings.patch_embeddings.", "encoder.layer.0."),
)
_LANGUAGE: Marks = (
    ("text_model.",),
    ("model.layers.",),
    ("model.embed_tokens.",),
    ("transformer.",),
)
_STYLE: Marks = (
    ("redux_up.", "redux_down."),
    ("style_embedding", "transformer_layes."),
)
_LATENT_UPSCALER: Marks = (
    ("post_upsample_res_blocks.",),
    ("in_conv.conv.", "out_conv.conv.", "blocks."),
)
_UPSCALER: Marks = (
    ("conv_first.", "conv_last."),  # ESRGAN and those built on it, SwinIR, HAT, ATD
    ("conv_first.", "layers.0.residual_group."),
    ("conv_first.", "layers.0.swin1."),  # DRCT
    ("conv_first.", "before_RG."),  # DAT, RGT
    ("conv_first.", "norm_start.", "norm_end."),  # GRL
    ("model.conv_first.", "model.norm_start."),
    ("conv_first.", "groups.0.blocks.0.inter."),  # FDAT
    ("conv_first.1.weight", "groups.0.blocks.0.inter."),
    ("conv_first.", "RRDB_trunk."),
    ("model.1.sub.",),
    ("to_feat.", "to_img."),  # SAFMN
    ("block_1.c1_r.", "upsampler."),  # SPAN
    ("conv_1.", "body.0.local_block.", "upsampler."),  # SeemoRe
    ("feats.0.weight", "feats.1.lk."),  # PLKSR
    ("gblocks.0.weight", "gblocks.1.norm."),  # MoSR
    ("in_to_dim.", "blocks.0.blocks.0.conv."),  # MoESR
    ("head.0.weight", "tail.1.weight", "body.0.body."),  # RCAN
    ("head.1.weight", "tail.1.weight", "body.0.body."),
    ("unet1.conv_bottom.",),  # RealCUGAN
    ("residual_layer.0.residual_layer.",),  # OmniSR
    ("UFONE.0.",),  # DITN
    ("fea_conv.", "B1.body."),  # DCTLSA
    ("initial.cnn.", "final_conv.pointwise."),  # SwiftSRGAN
    ("sub_mean.", "add_mean.", "body.encoder."),  # IPT
    ("mid_attn.", "final_res_block."),  # AuraSR
    ("m_head.", "m_tail."),  # restorers: DRUNet, FBCNN, SCUNet
    ("intro.weight", "ending.weight"),  # NAFNet, KBNet
    ("patch_embed.proj.", "refinement.0.", "latent.0."),
    ("encoder_level1.0.", "decoder_level3.0."),  # FFTformer
    ("input_proj.proj.", "encoderlayer_0."),  # Uformer
)


class Names:
    """Questions about the tensor names, asked of the set and of all prefixes at once."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.shapes = shapes

    @cached_property
    def prefixes(self) -> frozenset[str]:
        """Every beginning of a name that ends in a dot."""
        found: set[str] = set()
        for name in self.shapes:
            end = name.rfind(".")
            # Siblings share their beginnings: stop at the first one that is known.
            while end >= 0 and (prefix := name[: end + 1]) not in found:
                found.add(prefix)
                end = name.rfind(".", 0, end)
        return frozenset(found)

    def bear(self, marks: Marks) -> bool:
        """Whether all names of one line are there."""
        return any(all(self._has(name) for name in line) for line in marks)

    def _has(self, name: str) -> bool:
        return name in (self.prefixes if name.endswith(".") else self.shapes)


def _is_lora(n: Names) -> bool:
    return any(name.startswith(_LORA_STARTS) or _LORA.search(name) for name in n.shapes)


def _is_embedding(n: Names) -> bool:
    few = 0 < len(n.shapes) <= 4
    plain = all(len(shape) <= 2 for shape in n.shapes.values())
    names = {"emb_params", "clip_g", "clip_l", "t5xxl", "string_to_param.*", "*"}
    # Diffusers names the tensor after its word: "<cat-toy>".
    word = any(name.startswith("<") and name.endswith(">") for name in n.shapes)
    return few and plain and (word or not names.isdisjoint(n.shapes))


def _is_compact(n: Names) -> bool:
    """RealESRGAN Compact: nothing but a row of layers."""
    return n.bear((("body.0.weight", "body.1.weight"),)) and all(
        name.startswith("body.") for name in n.shapes
    )


def _bear(marks: Marks) -> Callable[[Names], bool]:
    return lambda names: names.bear(marks)


_RULES: tuple[tuple[str | None, str, Callable[[Names], bool]], ...] = (
    # The first match decides, so that parts come before the whole they are named after.
    ("photomaker", "an identity encoder", _bear(_PARTS)),
    ("loras", "low-rank pairs", _is_lora),
    (
        None,
        "an IP-Adapter: its custom node says where",
        _bear((("ip_adapter.",), ("image_proj.",))),
    ),
    ("embeddings", "a few token vectors", _is_embedding),
    ("model_patches", "a patch of a diffusion model", _bear(_MODEL_PATCH)),
    (
        "controlnet",
        "control layers",
        lambda n: n.bear(_CONTROL) or any(name.startswith("lllite_") for name in n.shapes),
    ),
    ("style_models", "style layers", _bear(_STYLE)),
    ("gligen", "a position net", lambda n: n.bear((("position_net.",),)) and len(n.shapes) < 1000),
    ("checkpoints", "diffusion model with VAE or text encoder", _bear(_CHECKPOINT)),
    ("latent_upscale_models", "a latent upsampler", _bear(_LATENT_UPSCALER)),
    ("vae_approx", "a tiny autoencoder", _bear(_TINY_VAE)),
    ("vae", "encoder and decoder", _bear(_VAE)),
    ("audio_encoders", "audio layers", _bear(_AUDIO)),
    ("upscale_models", "upscaler layers", _bear(_UPSCALER)),
    ("diffusion_models", "diffusion blocks", _bear(_DIFFUSION)),
    ("clip_vision", "a vision model alone", lambda n: n.bear(_VISION) and not n.bear(_LANGUAGE)),
    ("text_encoders", "language model layers", _bear(_TEXT)),
    ("upscale_models", "upscaler layers", _is_compact),
)


def folder_of_tensors(shapes: Mapping[str, tuple[int, ...]]) -> tuple[str | None, str] | None:
    """The folder and the evidence; the folder is None for what no folder of ComfyUI takes."""
    names = Names(shapes)
    for folder, reason, matches in _RULES:
        if matches(names):
            return folder, f"tensors: {reason}"
    return None
