"""How the command starts: at once, and without the noise of other libraries."""

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from deltamem_cli import app

SLOW = {"torch", "peft", "transformers", "numpy", "deltamem"}
# Says which of the slow packages a program has imported.
IMPORTED = f"import sys; print(*sorted({SLOW} & {{*sys.modules}}))"
WARNS = "import warnings; warnings.warn_explicit('of another library', UserWarning, 'other.py', 1, module='other')"
WARNS_US = "import warnings; warnings.warn_explicit('of ours', UserWarning, 'ours.py', 1, module='deltamem.forward')"


def output_of(program):
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)


def test_the_command_line_starts_without_a_model_library():
    assert output_of(f"import deltamem_cli; {IMPORTED}").stdout.split() == []
    assert output_of(f"import numpy; {IMPORTED}").stdout.split() == ["numpy"]  # the control


@pytest.mark.parametrize(("program", "shown"), [(WARNS, False), (WARNS_US, True)])
def test_only_our_own_warnings_are_shown(program, shown):
    silenced = output_of(f"from deltamem_cli.common import main; main(False, False); {program}").stderr
    assert bool(silenced) == shown
    assert output_of(f"from deltamem_cli.common import main; main(True, False); {program}").stderr


def test_the_version_is_that_of_the_package():
    from importlib.metadata import version

    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"deltamem {version('deltamem')}\n")
