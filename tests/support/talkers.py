"""Users who talk to servers that may be killed, and what must be kept of what they said."""

import asyncio
import json
from collections.abc import Callable, Sequence
from itertools import count
from random import Random

import httpx
from stored_states import same_state

from deltamem import DeltaMemState
from deltamem.serve.seen import FORGOTTEN
from deltamem.store import Key, Store

LOCAL = "local"


class Talkers:
    """Users, each of whom says one thing after the other, without a history.

    Attributes:
        told: what each said and was answered, as far as the answer arrived whole.
        refused: the statuses of answers that were refusals.
    """

    def __init__(self, names: Sequence[str], seed: int = 0) -> None:
        self.told: dict[str, list[tuple[str, str]]] = {name: [] for name in names}
        self.refused: list[int] = []
        self._numbers, self._random = count(), Random(seed)

    def talk(self, urls: Sequence[str], stopped: Callable[[], bool]) -> None:
        """Talk to the servers, in random order, until told to stop."""

        async def all_of_them() -> None:
            async with httpx.AsyncClient(timeout=60) as client:
                await asyncio.gather(*(self._talk(client, name, urls, stopped) for name in self.told))

        asyncio.run(all_of_them())

    @property
    def answers(self) -> int:
        """How many answers arrived whole."""
        return sum(map(len, self.told.values()))

    async def _talk(self, client: httpx.AsyncClient, name: str, urls: Sequence[str], stopped: Callable[[], bool]) -> None:
        while not stopped():
            text = f"Anna likes {next(self._numbers)} ."
            try:
                answer = await self._answer(client, self._random.choice(urls), name, text)
            except httpx.TransportError:  # the server is gone, and whether it had written this is not known
                await asyncio.sleep(0.01)
                continue
            if answer is not None:
                self.told[name].append((text, answer))

    async def _answer(self, client: httpx.AsyncClient, url: str, name: str, text: str) -> str | None:
        body = {
            "model": "tiny",
            "temperature": 0,
            "max_tokens": 4,
            "user": name,
            "messages": [{"role": "user", "content": text}],
        }
        place = f"{url}/v1/chat/completions"
        if self._random.random() < 0.5:
            response = await client.post(place, json=body)
            if response.is_success:
                return response.json()["choices"][0]["message"]["content"]
            self.refused.append(response.status_code)
            return None
        pieces: list[str] = []
        async with client.stream("POST", place, json={**body, "stream": True}) as response:
            if not response.is_success:
                self.refused.append(response.status_code)
                return None
            async for line in response.aiter_lines():
                if line == "data: [DONE]":
                    return "".join(pieces)
                if line:
                    data = json.loads(line.removeprefix("data: "))
                    if "error" in data:
                        return None
                    pieces.append(data["choices"][0]["delta"].get("content", ""))
        return None

    def check(self, store: Store) -> None:
        """Check that each memory has what its user was answered, in order, nothing twice and nothing by halves."""
        for name, told in self.told.items():
            contents = store.contents(Key(LOCAL, name))
            said = [entry.content for entry in contents.entries]
            pairs = list(zip(said[::2], said[1::2], strict=True))
            kept = iter(pairs)
            missing = [pair for pair in told if pair not in kept]  # goes on in `kept` from pair to pair
            assert not missing, f"{name} was answered {missing}, and the journal has {pairs}"
            assert len({text for text, _ in pairs}) == len(pairs)
            links = [link for link in contents.memory.seen if not link.startswith(FORGOTTEN)]
            assert len(links) == len(said)
            assert contents.memory.turn == len(contents.turns) == len(pairs)

    def check_replays(self, store: Store, url: str) -> None:
        """Check that each memory is what its journal makes when it is written again."""
        for name in self.told:
            before = DeltaMemState.from_bytes(store.load(Key(LOCAL, name)).state)
            assert httpx.post(f"{url}/v1/memories/{name}/replay", timeout=60).is_success
            assert same_state(before, DeltaMemState.from_bytes(store.load(Key(LOCAL, name)).state))
