import pytest

from deltamem.store.records import Key
from deltamem.vllm.request import MemoryUse, check_sampling, memory_use


def test_a_request_names_its_memory():
    assert memory_use(None) is None
    assert memory_use({"other": 1}) is None
    assert memory_use({"memory": "anna"}) == MemoryUse(Key("local", "anna"), "after")
    assert memory_use({"memory": "anna", "write": "during", "tenant": "shop"}) == MemoryUse(Key("shop", "anna"), "during")
    assert memory_use({"memory": "anna", "write": "prompt", "known": 3}) == MemoryUse(Key("local", "anna"), "prompt", 3)
    assert memory_use({"memory": "anna", "write": 0}) == MemoryUse(Key("local", "anna"), False)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"memory": "an na"}, "memory 'an na' is not accepted"),
        ({"memory": 7}, "memory 7 is not accepted"),
        ({"memory": "anna", "tenant": ""}, "tenant '' is not accepted"),
        ({"memory": "anna", "write": "always"}, "give 'after', 'during', 'prompt' or false"),
        ({"memory": "anna", "write": True}, "give 'after', 'during', 'prompt' or false"),
        ({"memory": "anna", "write": None}, "give 'after', 'during', 'prompt' or false"),
        ({"memory": "anna", "known": -1}, "give the number of the first tokens"),
        ({"memory": "anna", "known": True}, "give the number of the first tokens"),
        ({"write": "after"}, "needs the name of a memory"),
        ({"known": 3}, "'known' needs the name of a memory"),
    ],
)
def test_other_requests_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        memory_use(given)


def test_tokens_that_cannot_be_written_are_refused():
    written, read = MemoryUse(Key("local", "anna"), "after"), MemoryUse(Key("local", "anna"), False)
    with pytest.raises(ValueError, match="only one answer"):
        check_sampling(written, 2, None, None)
    with pytest.raises(ValueError, match="stop_token_ids"):
        check_sampling(written, 1, ["."], None)
    with pytest.raises(ValueError, match="prompt_logprobs"):
        check_sampling(written, 1, None, 0)
    check_sampling(written, 1, [], None)
    check_sampling(read, 2, ["."], None)
    check_sampling(None, 2, ["."], None)
