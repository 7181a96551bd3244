"""Runs lm-evaluation-harness's CLI with the model `deltamem`: `python -m deltamem.evaluation.lm_eval run ...`."""

from lm_eval.__main__ import cli_evaluate

import deltamem.evaluation.lm_eval.model  # noqa: F401 (registers the model)

if __name__ == "__main__":
    cli_evaluate()
