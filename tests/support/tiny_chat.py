"""A tokenizer of words with a chat template, made without a download, and a model for it."""

from peft import PeftModel
from tiny import tiny_adapted, tiny_backbone, tiny_config
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

WORDS = (
    "<pad> <unk> <|im_start|> <|im_end|> \n system user assistant Remember everything . , ? ! Anna Bob likes lives in teal red "
    "Oslo Rome What does like ? Where is Okay Noted Hello there and the a friend of answer 1 2 3 4 5 6 7 8 9"
).split(" ")
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def chat_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys(WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.Split(" ", "removed"), pre_tokenizers.Punctuation()]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
    )
    fast.chat_template = TEMPLATE
    return fast


def chat_model(spread: float = 0.02, layers: int = 2, **options) -> PeftModel:
    """A tiny adapted model that ends its turns as the tokenizer does; `spread` is the size of the backbone's weights."""
    backbone = tiny_backbone(eos_token_id=3, initializer_range=spread, num_hidden_layers=layers)
    backbone.generation_config.eos_token_id = 3
    return tiny_adapted(tiny_config(**options), backbone=backbone)
