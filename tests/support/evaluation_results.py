"""Folders as `deltamem eval --output` writes them, with made-up answers."""

import json
import random
from pathlib import Path

OPTIONS = {"model": "smollm2", "adapter": "runs/mine", "fingerprint": "abc", "system": None, "batch_size": 8, "seed": 0}
GROUPS = ("multi-hop", "temporal", "open", "single-hop")
# How much better than nothing an answer is under each setting, in F1.
GAINS = {"none": 0.0, "memory": 0.15, "zero": 0.01, "shuffled": 0.03, "full": 0.3, "full+memory": 0.33, "bm25": 0.25}


def locomo_like(setting, count=300, seed=0, places=None):
    """Rows of a setting: free text scored by F1, the gold answer's log-likelihood and rank."""
    rows = []
    for index in places or range(count):
        # What makes a question hard is the same under all settings.
        question, answer = random.Random(f"question-{index}"), random.Random(f"{seed}-{setting}-{index}")
        ease = question.random()
        f1 = max(0.0, min(1.0, round(ease * 0.4 + GAINS[setting] + answer.gauss(0, 0.15), 2)))
        rows.append(
            {
                "index": index,
                "group": GROUPS[index % len(GROUPS)],
                "question": f"What did Caroline do in week {index}?",
                "answers": [f"She painted picture {index}"],
                "prediction": f"picture {index}" if f1 > 0.4 else "I do not know",
                "log_likelihood": -20 + 10 * ease + 20 * GAINS[setting] + answer.gauss(0, 2),
                "gold_first": float(f1 > 0.4),
                "f1": f1,
            }
        )
    return rows


def write_task(folder, name, rows, **options):
    """Write a task's rows by setting; the folder of the task."""
    task = Path(folder) / name
    task.mkdir(parents=True)
    (task / "options.json").write_text(json.dumps({**OPTIONS, **options}))
    for setting, several in rows.items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in several)
        (task / f"{setting}.jsonl").write_text(text, encoding="utf-8")
    return task


def write_locomo(folder, name="locomo", settings=tuple(GAINS), count=300, seed=0, **options):
    rows = {setting: locomo_like(setting, count, seed) for setting in settings}
    return write_task(folder, name, rows, seed=seed, **options)
