"""What is called supported, and what the contract proves: the same."""

from pathlib import Path

import pytest
import transformers
from families import FAMILIES
from family import tiny_config_of

from deltamem.inspection.architectures import architectures, as_markdown

DOCS = Path(__file__).parents[2] / "docs" / "architectures.md"
REMAKE = "deltamem inspect --architectures --markdown > docs/architectures.md"


@pytest.fixture(scope="module")
def listed():
    return architectures()


@pytest.fixture(scope="module")
def supported(listed):
    return {row["model_type"] for row in listed if row["supported"]}


@pytest.fixture(scope="module")
def cases():
    """For each case of the contract the types that it proves: its own, and that of its text decoder."""
    types = {}
    for name, family in FAMILIES.items():
        own = name.partition(":")[0]
        types[name] = {own, tiny_config_of(name, family.options).get_text_config().model_type}
    return types


def test_what_is_called_supported_is_proved(supported, cases):
    assert supported - set().union(*cases.values()) == set()


def test_what_is_proved_is_called_supported(supported, cases):
    assert {name.partition(":")[0] for name in cases} - supported == set()


def test_every_type_is_supported_or_has_a_reason(listed):
    for row in listed:
        assert row["supported"] == (row["reason"] is None), row
        assert row["attention"] or row["reason"], row


def test_the_docs_are_up_to_date(listed):
    text = DOCS.read_text()
    if f"transformers {transformers.__version__}" not in text.replace("\n", " "):
        pytest.skip("docs/architectures.md was made with another version of transformers")
    assert as_markdown(listed) == text, f"write it anew: {REMAKE}"
