"""Two replicas under Ray Serve, as docs/ray_serve.py starts them."""

import os
import socket

import httpx
import pytest
from doc_pages import ROOT
from tiny import tiny_backbone
from tiny_chat import chat_model, chat_tokenizer

ray = pytest.importorskip("ray", reason="Ray is not installed; run: pip install 'deltamem[ray]'")
KEY = "anna-0123456789abcdef"


@pytest.fixture
def place(server, tmp_path, monkeypatch):
    """The address of the replicas."""
    from ray import serve

    backbone = tiny_backbone(eos_token_id=3)
    backbone.save_pretrained(tmp_path / "backbone")
    chat_tokenizer().save_pretrained(tmp_path / "backbone")
    chat_model().save_pretrained(tmp_path / "adapter")
    (tmp_path / "keys").write_text(f"anna {KEY}\n")
    for name, value in (
        ("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "docs"), os.environ.get("PYTHONPATH", "")])),
        ("DELTAMEM_STORE", server.new_database()),
        ("DELTAMEM_KEYS", str(tmp_path / "keys")),
        ("DELTAMEM_MODEL", str(tmp_path / "backbone")),
        ("DELTAMEM_ADAPTER", str(tmp_path / "adapter")),
    ):
        monkeypatch.setenv(name, value)  # Ray's processes inherit them
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    import ray_serve

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ray.init(num_cpus=2, include_dashboard=False)
    try:
        serve.start(http_options={"port": port})
        serve.run(ray_serve.app)
        (replicas,) = serve.status().applications["default"].deployments.values()
        assert replicas.replica_states == {"RUNNING": 2}
        yield f"http://127.0.0.1:{port}"
    finally:
        serve.shutdown()
        ray.shutdown()


def test_turns_on_one_memory_go_to_two_replicas(place):
    texts = [f"Anna likes {number} ." for number in range(12)]
    with httpx.Client(base_url=place, headers={"Authorization": f"Bearer {KEY}"}, timeout=120) as client:
        (model,) = client.get("/v1/models").json()["data"]
        for text in texts:
            body = {"model": model["id"], "max_tokens": 4, "user": "diary", "messages": [{"role": "user", "content": text}]}
            assert client.post("/v1/chat/completions", json=body).is_success
        entries = client.get("/v1/memories/diary/messages").json()["data"]
    assert [entry["content"] for entry in entries][::2] == texts
