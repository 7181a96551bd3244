"""ServedMemories: turns on memories that a store keeps."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from deltamem.chat.tokens import Message
from deltamem.memory.state import DeltaMemState
from deltamem.serve.answers import Answer
from deltamem.serve.claims import Claims
from deltamem.serve.plan import Plan
from deltamem.serve.seen import FORGOTTEN, Seen
from deltamem.serve.turn import Event, Failed, Finished, Sampling, Turn, Write
from deltamem.serve.turn_runner import TurnRunner
from deltamem.store import Entry, Key, Memory, NotFound, Store
from deltamem.store import Turn as StoredTurn

# Every so many turns, a journal keeps the state before the turn, so that forgetting does not replay everything.
CHECKPOINT = 8


@dataclass(frozen=True)
class NewMemory:
    """What a memory gets that is made by its first turn.

    Args:
        journal: whether its messages are kept.
        ttl: how many seconds it stays after its last change; None for ever.
    """

    journal: bool = False
    ttl: float | None = None


@dataclass(frozen=True)
class TurnOptions:
    """How a turn is answered and written; see `Turn`."""

    tenant: str
    write: Write
    sampling: Sampling | None
    deadline: float | None = None

    def turn(self, messages: Sequence[Message], known: int, memory: DeltaMemState, emit: Callable[[Event], None]) -> Turn:
        """The turn for the engine."""
        return Turn(messages, known, memory, self.write, self.sampling, emit, self.tenant, self.deadline)


class ServedMemories:
    """Runs turns on the memories of a store, and what else can be done with them.

    Args:
        engine: runs the turns.
        store: keeps the memories.
        new: what new memories get.
    """

    def __init__(self, engine: TurnRunner, store: Store, new: NewMemory) -> None:
        self.engine, self.store, self.new = engine, store, new
        self.claims = Claims(store)
        self._tasks: set[asyncio.Task[None]] = set()  # the event loop keeps no reference to a task

    def ask(
        self,
        key: Key | None,
        messages: Sequence[Message],
        options: TurnOptions,
    ) -> Answer:
        """Begin a turn on a memory, which is made if it does not exist and the turn is written.

        Args:
            key: the memory; None for an empty one that is not kept.
            messages: the chat, as far as the client sent it.
            options: how it is answered and written.
        """
        answer = Answer()
        task = asyncio.create_task(self._run(answer, key, messages, options))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return answer

    async def tell(self, key: Key, messages: Sequence[Message], deadline: float | None = None) -> Finished:
        """Write messages to a memory without an answer; it is made if it does not exist.

        Raises:
            CancelledTurnError: the deadline, a time on `time.monotonic`'s clock, passed first.
        """
        answer = self.ask(key, messages, TurnOptions(key.tenant, "after", None, deadline))
        return await answer.end()

    async def load(self, key: Key) -> Memory:
        """Load a memory.

        Raises:
            NotFound: it does not exist.
        """
        return await asyncio.to_thread(self.store.load, key)

    async def write(
        self, state: DeltaMemState, context: Sequence[Message], new: Sequence[Message], tenant: str
    ) -> DeltaMemState:
        """A memory after some messages that follow others, as the turn that wrote them left it."""
        answer = Answer()
        turn = Turn([*context, *new], len(context), state, "after", None, answer.put, tenant)
        answer.begin(turn)
        self.engine.submit(turn)
        return (await answer.end()).memory

    def opened(self, state: bytes) -> DeltaMemState:
        """A state from the store.

        Raises:
            ValueError: another adapter wrote it.
        """
        return self.engine.accepted(DeltaMemState.from_bytes(state))

    async def _run(self, answer: Answer, key: Key | None, messages: Sequence[Message], options: TurnOptions) -> None:
        try:
            if key is None:
                await self._without_memory(answer, messages, options)
            elif not options.write:  # reading disturbs no other turn, and makes no memory
                await self._read(answer, key, messages, options)
            else:
                async with self.claims.claimed(key):
                    kept = await self._load_or_create(key)
                    await self._with_memory(answer, kept, messages, options)
        except Exception as error:  # for the consumer
            answer.put(Failed(error))

    async def _without_memory(self, answer: Answer, messages: Sequence[Message], options: TurnOptions) -> None:
        inner = Answer()
        turn = replace(options, write=False).turn(messages, len(messages), self.engine.new_memory(), inner.put)
        answer.begin(turn)
        self.engine.submit(turn)
        async for event in inner.pieces():
            answer.put(event)

    async def _read(self, answer: Answer, key: Key, messages: Sequence[Message], options: TurnOptions) -> None:
        try:
            kept = await self.load(key)
        except NotFound:
            await self._without_memory(answer, messages, options)
        else:
            await self._with_memory(answer, kept, messages, options)

    async def _with_memory(self, answer: Answer, kept: Memory, messages: Sequence[Message], options: TurnOptions) -> None:
        seen = Seen(kept.salt, kept.seen)
        plan = Plan.of(seen, messages)
        inner = Answer()
        turn = options.turn(plan.messages, plan.known, self.opened(kept.state), inner.put)
        answer.begin(turn)
        self.engine.submit(turn)
        async for event in inner.pieces():
            if isinstance(event, Finished) and options.write:
                await self._save(kept, seen, plan, event, answered=options.sampling is not None)
            answer.put(event)

    async def _load_or_create(self, key: Key) -> Memory:
        try:
            return await self.load(key)
        except NotFound:
            return await self.create(key)

    async def create(self, key: Key, journal: bool | None = None, ttl: float | None = None) -> Memory:
        """Make an empty memory.

        Args:
            key: its name.
            journal, ttl: see `NewMemory`; the server's if None.

        Raises:
            Exists: there is one of this name.
        """
        state = self.engine.new_memory().to_bytes()
        journal = self.new.journal if journal is None else journal
        ttl = self.new.ttl if ttl is None else ttl
        return await asyncio.to_thread(self.store.create, key, state, journal=journal, ttl=ttl)

    async def _save(self, kept: Memory, seen: Seen, plan: Plan, end: Finished, answered: bool) -> None:
        """Store what a turn wrote, in one transaction."""
        new = [*plan.new, {"role": "assistant", "content": end.text}] if answered else plan.new
        number = kept.turn + 1
        changed = replace(
            kept,
            state=end.memory.to_bytes(),
            tokens=end.memory.tokens[0],
            turn=number,
            seen=seen.with_written(plan.before, new).entries,
        )
        entries: list[Entry] = []
        turn = None
        if kept.journal:
            entries, turn = await self._journalled(kept, plan, new, number)
        await asyncio.to_thread(self.store.save, changed, entries=entries, turn=turn)

    async def _journalled(
        self, kept: Memory, plan: Plan, new: Sequence[Message], number: int
    ) -> tuple[list[Entry], StoredTurn]:
        """The new entries of the journal, and the turn that brought them."""
        entries = await asyncio.to_thread(self.store.entries, kept.key)
        by_place = {place: entry.id for place, entry in written_entries(kept, entries)}
        now = time.time()

        def entry(message: Message, place: int, written: bool) -> Entry:
            tokens = len(self.engine.tokenizer(message["content"], add_special_tokens=False)["input_ids"])
            return Entry(uuid.uuid4().hex, number, place, message["role"], message["content"], now, tokens, written)

        prompts = {entry.content: entry for entry in entries if not entry.written}
        system = [prompts.get(message["content"]) or entry(message, 0, False) for message in plan.system]
        added = [entry(message, place, True) for place, message in enumerate(new, 1)]
        context = (*(prompt.id for prompt in system), *(by_place[place] for place in plan.places))
        before = kept.state if kept.turn % CHECKPOINT == 0 else None
        return [*(prompt for prompt in system if prompt.turn == number), *added], StoredTurn(number, context, before)


def messages_of(entries: Sequence[Entry]) -> list[Message]:
    """Entries of a journal as the messages of a chat."""
    return [{"role": entry.role, "content": entry.content} for entry in entries]


def written_entries(memory: Memory, entries: Sequence[Entry]) -> Iterator[tuple[int, Entry]]:
    """The written entries of a journal with their places in the memory's `seen`, which also has the forgotten ones."""
    places = (place for place, link in enumerate(memory.seen) if not link.startswith(FORGOTTEN))
    return zip(places, (entry for entry in entries if entry.written), strict=True)
