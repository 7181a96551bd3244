"""Text decoders of vision models, from vendors without another family: Llama's attention.

Some have norms on queries and keys per head; Muse and Step gate each head's output.
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
