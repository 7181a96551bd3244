"""Episodes and arguments of a short training."""

from tiny_chat import chat_tokenizer

from deltamem.training.episodes import EpisodeEncoder
from deltamem.training.trainer import DeltaMemTrainingArguments

ENCODER = EpisodeEncoder(chat_tokenizer(), answer_only=True)
ANSWERS = ("teal", "Bob lives in Rome and Oslo .", "red", "a friend of Anna", "Oslo", "1 2 3 4 5 6 7")


def chat(answer, view="memory"):
    turns = ["Anna likes teal.", "Noted.", "What does Anna like?", answer]
    messages = [{"role": role, "content": text} for role, text in zip(("user", "assistant") * 2, turns, strict=True)]
    return {"messages": messages, "reads": [{"view": view}]}


MEMORY = [chat(answer) for answer in ANSWERS]


def arguments(folder, size=6, accumulate=1, **options):
    plain = {"optim": "sgd", "learning_rate": 0.1, "warmup_steps": 0, "lr_scheduler_type": "constant", "max_grad_norm": 0}
    quiet = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "save_strategy": "no", "memory_statistics": False}
    given = {"max_steps": 1, "write_penalty": 0.0, **options}
    batch = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulate}
    return DeltaMemTrainingArguments(**{"output_dir": str(folder), **plain, **quiet, **batch, **given})
