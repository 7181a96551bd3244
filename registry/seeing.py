"""Text decoders of models that see, of vendors without another family: Llama's attention.

In some of them with norms on queries and keys per head, and in Muse and Step with a gate of each head's outcome.
"""

from deltamem.hook import AttentionHook

HOOKS = dict.fromkeys(
    (
        "cosmos3_edge_text",
        "deepseek_ocr2_text",
        "hunyuan_vl_text",
        "muse_glimmer_text",
        "muse_spark_text",
        "step3p5",
        "unlimited_ocr_text",
    ),
    AttentionHook(),
)
