"""Models that see or hear: their text decoder has a memory, their towers have none. They run with text alone here."""

from family import Family
from transformers import AutoModelForImageTextToText


def seeing(text=None, vision=None, **more):
    """A family with options for its text decoder and its vision tower."""
    options = {"text_config": text or {}, "vision_config": vision or {}, **more.pop("options", {})}
    return Family(options, auto=AutoModelForImageTextToText, **more)


def three_positions(*sections, **rope):
    """Rotary embeddings with positions in time, height and width; `sections` of half a head's width are each one's."""
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [*sections], **rope}}


TOWER = {"depth": 1, "num_heads": 4}
MERGING_TOWER = {**TOWER, "out_hidden_size": 32}
DEEP_TOWER = {**MERGING_TOWER, "deepstack_visual_indexes": [0], "num_position_embeddings": 16}
SAM_TOWER = {"image_size": 32, "mlp_dim": 48, "output_channels": 8}
NO_SDPA_TOWER = {"eager and sdpa": "transformers refuses SDPA for its vision tower"}

FAMILIES = {
    "aria": seeing(),
    "aya_vision": seeing(),
    "chameleon": Family(
        {
            "vocabulary_map": {"<image>": 60},
            "vq_config": {"base_channels": 32, "channel_multiplier": [1], "num_res_blocks": 1, "num_embeddings": 8},
        },
        auto=AutoModelForImageTextToText,
    ),
    "cohere2_vision": seeing(options={"alignment_intermediate_size": 32}),
    "cohere_compass": seeing(
        {"rope_parameters": {"sliding_attention": three_positions(1, 1, 2)["rope_parameters"], "full_attention": None}},
        DEEP_TOWER,
    ),
    "cosmos3_edge": seeing(three_positions(1, 1, 2), options={"projector_hidden_size": 32}),
    "cosmos3_omni": seeing(three_positions(1, 1, 2), DEEP_TOWER),
    "deepseek_vl": seeing(),
    "deepseek_ocr2": seeing(
        {"n_group": 1, "topk_group": 1, "mlp_layer_types": ["dense", "sparse"], "num_experts_per_tok": 2},
        {"sam_config": {**SAM_TOWER, "downsample_channels": [8, 32]}},
    ),
    "deepseek_vl_hybrid": seeing(options={"high_res_vision_config": SAM_TOWER}),
    "emu3": Family(
        {
            "vocabulary_map": {"<image>": 60},
            "vq_config": {"base_channels": 32, "channel_multiplier": [1], "num_res_blocks": 1, "codebook_size": 8},
        },
        auto=AutoModelForImageTextToText,
    ),
    "ernie4_5_vl_moe": seeing(
        {**three_positions(1, 1, 2), "moe_intermediate_size": [16, 16], "moe_k": 2, "moe_num_experts": 4}, TOWER
    ),
    "exaone4_5": seeing(vision=MERGING_TOWER),
    "gemma3": seeing(),
    "glm46v": seeing(three_positions(1, 1, 2, partial_rotary_factor=1.0), MERGING_TOWER),
    "glm4v": seeing(three_positions(1, 1, 2, partial_rotary_factor=1.0), MERGING_TOWER),
    "glm4v_moe": seeing(three_positions(1, 1, 2, partial_rotary_factor=1.0), MERGING_TOWER),
    "glm_ocr": seeing(three_positions(1, 1, 2, partial_rotary_factor=1.0), MERGING_TOWER),
    "got_ocr2": seeing(vision=SAM_TOWER, lacks=NO_SDPA_TOWER),
    "granite4_vision": seeing(
        vision={"hidden_size": 64},
        options={"deepstack_layer_map": [], "downsample_rate": "1/2", "spatial_target_layers": []},
        lacks={"cached decoding": "its text decoder makes no cache of its own where none is given"},
    ),
    "granite_docling": seeing(vision={"out_hidden_size": 32}),
    "hunyuan_vl": seeing({**three_positions(1, 1, 2), "head_dim": 8}),
    "hyperclovax_vision_v2": seeing(vision=MERGING_TOWER),
    "idefics2": seeing(vision={"patch_size": 4, "image_size": 16}),
    "idefics3": seeing(vision={"patch_size": 4, "image_size": 16}),
    "internvl": seeing(),
    "janus": seeing(
        vision={"projection_dim": 32},
        options={
            "vq_config": {
                "base_channels": 32,
                "channel_multiplier": [1],
                "image_token_embed_dim": 32,
                "latent_channels": 32,
                "num_embeddings": 8,
                "num_res_blocks": 1,
                "projection_dim": 32,
            }
        },
    ),
    "kosmos-2.5": seeing(
        {"attention_heads": 4, "embed_dim": 32, "layers": 2},
        {"max_num_patches": 16, "patch_embed_hidden_size": 32},
        options={"latent_query_num": 4},
    ),
    "lfm2_vl": seeing({"layer_types": ["conv", "full_attention"]}, attention=1, options={"projector_hidden_size": 32}),
    "lighton_ocr": seeing(),
    "llama4": seeing(
        {"no_rope_layers": [1, 0], "moe_layers": [1], "attention_chunk_size": 8, "intermediate_size_mlp": 48},
        {"projector_input_dim": 32, "projector_output_dim": 32, "vision_output_dim": 32, "image_size": 28},
    ),
    "llava": seeing(),
    "llava_next": seeing(),
    "llava_next_video": seeing(),
    "llava_onevision": seeing(),
    "mistral3": seeing(),
    "mllama": seeing(
        {"num_hidden_layers": 3, "cross_attention_layers": [1]},
        {"image_size": 28, "max_num_tiles": 1, "supported_aspect_ratios": [[1, 1]], "intermediate_layers_indices": [0]},
    ),
    "moss_transcribe_diarize": Family(),
    "muse_glimmer": seeing(options={"projector_hidden_size": 32, "out_hidden_size": 32}),
    "muse_spark": seeing(
        {"moe_hidden_size": 32},
        options={
            "projector_hidden_size": 32,
            "out_hidden_size": 32,
            "audio_config": {"patch_sizes": [4, 4], "hidden_sizes": [8, 8], "depths": [1, 1], "out_hidden_size": 32},
        },
    ),
    "ovis2": seeing(),
    "paddleocr_vl": seeing(three_positions(1, 1, 2)),
    "paligemma": seeing(
        lacks={"eager and sdpa": "without token_type_ids, tokens see those behind them under SDPA"},
    ),
    "pp_chart2table": seeing(vision=SAM_TOWER, lacks=NO_SDPA_TOWER),
    "qianfan_ocr": seeing(),
    "qwen2_5_omni_thinker": seeing(
        three_positions(1, 1, 2), MERGING_TOWER, options={"audio_config": {"output_dim": 32}, "vision_start_token_id": 60}
    ),
    "qwen2_5_vl": seeing(three_positions(1, 1, 2), MERGING_TOWER),
    "qwen2_vl": seeing(three_positions(1, 1, 2), {**TOWER, "embed_dim": 32}),
    "qwen3_omni_moe_thinker": seeing(
        three_positions(1, 1, 2),
        DEEP_TOWER,
        options={"audio_config": {"output_dim": 32, "downsample_hidden_size": 8}, "vision_start_token_id": 60},
    ),
    "qwen3_vl": seeing(three_positions(1, 1, 2), DEEP_TOWER),
    "qwen3_vl_moe": seeing(three_positions(1, 1, 2), DEEP_TOWER),
    "shieldgemma2": seeing(),
    "smolvlm": seeing(vision={"patch_size": 4, "image_size": 16}),
    "step3p7": seeing({"share_expert_dim": 16, "sliding_window": 8}, {"image_size": 28, "max_position_embeddings": 4}),
    "unlimited_ocr": seeing(
        {"n_group": 1, "topk_group": 1, "num_key_value_heads": 4}, {"sam_config": {**SAM_TOWER, "downsample_channels": [8, 32]}}
    ),
    "video_llama_3": seeing(),
    "video_llava": seeing(),
    "vipllava": seeing(),
}
