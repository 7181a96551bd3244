"""Fixtures of the tests of backbones."""

import functools

import pytest
from tiny import tiny_backbone


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Saved tiny backbones: a folder by family and sizes."""

    @functools.cache
    def folder(model_type, **sizes):
        path = tmp_path_factory.mktemp(model_type)
        tiny_backbone(model_type, **sizes).save_pretrained(path)
        return path

    return folder
