"""Run in a process of its own, with HF_ENDPOINT set: sends adapters and loads them in every way, prints what came of it."""

import json
import sys
from pathlib import Path

import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from tiny import random_tokens, tiny_adapted, tiny_backbone, tiny_config
from tiny_chat import chat_tokenizer
from transformers import AutoModelForCausalLM, pipeline
from typer.testing import CliRunner

from deltamem.training import command as train
from deltamem_cli import app

BACKBONE = "someone/tiny"


@torch.no_grad()
def logits(model):
    return model(input_ids=random_tokens(2, 12)).logits


def push(*arguments):
    result = CliRunner().invoke(app, ["push", *map(str, arguments)])
    return {"status": result.exit_code, "output": result.stdout, "errors": result.stderr}


def main(folder):
    tiny_backbone(eos_token_id=3).push_to_hub(BACKBONE)
    chat_tokenizer().push_to_hub(BACKBONE)
    backbone = AutoModelForCausalLM.from_pretrained(BACKBONE)
    model = tiny_adapted(tiny_config(num_states=2), backbone=backbone)
    expected = logits(model)

    def same(name, loaded):
        found[name] = torch.equal(logits(loaded), expected)

    found = {}
    model.push_to_hub("someone/by-model")
    model.save_pretrained(folder)
    found["pushed"] = push(folder, "someone/by-command")
    found["dry run"] = push(folder, "someone/not-sent", "--dry-run")
    found["branch"] = push(folder, "someone/by-branch", "--revision", "try")
    found["private"] = push(folder, "someone/secret", "--private")
    found["public already"] = push(folder, "someone/by-command", "--private")

    same("PeftModel", PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(BACKBONE), "someone/by-model"))
    same("AutoPeftModel", AutoPeftModelForCausalLM.from_pretrained("someone/by-command"))
    same("branch", AutoPeftModelForCausalLM.from_pretrained("someone/by-branch", revision="try"))
    same("AutoModel", AutoModelForCausalLM.from_pretrained("someone/by-command"))
    same("pipeline", pipeline("text-generation", "someone/by-command", tokenizer=BACKBONE).model)
    bare = AutoModelForCausalLM.from_pretrained(BACKBONE)
    bare.load_adapter("someone/by-model")
    same("load_adapter", bare)

    output = folder.parent / "trained"
    options = f"--model {BACKBONE} --output_dir {output} --max_steps 1 --per_device_train_batch_size 2 --use_cpu"
    train.main([*options.split(), *"--report_to none --disable_tqdm true --push_to_hub --hub_model_id someone/trained".split()])
    found["trained"] = torch.equal(
        *(logits(AutoPeftModelForCausalLM.from_pretrained(at)) for at in (output, "someone/trained"))
    )
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
