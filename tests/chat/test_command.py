"""`deltamem chat`, fed with lines, and in a terminal of its own."""

import os
import pty
import re
import select
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console
from tiny import tiny_backbone
from tiny_chat import TEMPLATE, chat_model, chat_tokenizer
from typer.testing import CliRunner

from deltamem import ChatSession, DeltaMemState, SessionStore
from deltamem.chat.terminal import loop as terminal
from deltamem.chat.terminal.conversation import Conversation
from deltamem.chat.terminal.heat_map import picture
from deltamem.chat.terminal.slash_commands import COMMANDS
from deltamem.hub.training_record import GENERATED_FACTS, note_training
from deltamem.memory.snapshot import Snapshot
from deltamem_cli import app

SHORT = {"max_new_tokens": 4, "do_sample": False}
QUESTION = "What does Anna like?"


@pytest.fixture
def conversation(tmp_path):
    store = SessionStore(tmp_path / "sessions", chat_model(spread=0.5), chat_tokenizer(), "Remember everything.")
    return Conversation(store, SHORT)


@pytest.fixture
def say(conversation, monkeypatch):
    """Says lines to a conversation, and gives what was printed."""

    def said(*lines):
        left = iter(lines)

        def read(prompt=""):
            try:
                return next(left)
            except StopIteration:
                raise EOFError from None

        monkeypatch.setattr("builtins.input", read)
        console = Console(width=200, highlight=False)
        with console.capture() as captured:
            terminal.talk(conversation, console)
        return captured.get()

    return said


@pytest.fixture
def arguments(tmp_path):
    tiny_backbone(eos_token_id=3).save_pretrained(tmp_path / "backbone")
    chat_tokenizer().save_pretrained(tmp_path / "backbone")
    chat_model().save_pretrained(tmp_path / "adapter")
    folders = [str(tmp_path / "backbone"), "--adapter", str(tmp_path / "adapter"), "--session", str(tmp_path / "sessions")]
    return ["chat", *folders, "--temperature", "0"]


def same(first, second):
    return all(torch.equal(first.tensors[name], second.tensors[name]) for name in first.tensors)


def asked(model, memory=None):
    """The answer of a session that has only a memory."""
    return ChatSession(model, chat_tokenizer(), "Remember everything.", memory).reply(QUESTION, **SHORT)


def test_what_is_said_is_answered_and_kept(conversation, say):
    output = say("Hello there", QUESTION)
    assert [message["role"] for message in conversation.session.messages] == ["user", "assistant"] * 2
    assert conversation.session.messages[-1]["content"] in output
    assert conversation.session.messages[-1]["content"] != ""


def test_a_file_goes_to_the_memory_alone(conversation, say, tmp_path):
    (tmp_path / "a file.txt").write_text("Anna likes teal. Bob lives in Rome.")
    say(f"/observe {tmp_path / 'a file.txt'}")
    expected = ChatSession(conversation.store.model, chat_tokenizer(), "Remember everything.")
    expected.observe("Anna likes teal. Bob lives in Rome.")
    assert same(conversation.session.memory, expected.memory)
    assert conversation.session.messages == []


def test_a_text_is_remembered_without_a_file(conversation, say):
    assert "tokens written" in say("/remember Anna likes teal. Bob lives in Rome.")
    expected = ChatSession(conversation.store.model, chat_tokenizer(), "Remember everything.")
    expected.observe("Anna likes teal. Bob lives in Rome.")
    assert same(conversation.session.memory, expected.memory)
    assert conversation.session.messages == []


def test_a_question_is_answered_and_nothing_of_it_is_kept(conversation, say):
    say("Anna likes teal.", "/save anna")
    memory, messages = conversation.session.memory.clone(), conversation.session.messages
    answer = say(f"/ask {QUESTION}").strip()
    assert answer
    assert same(conversation.session.memory, memory)
    assert conversation.session.messages == messages
    assert conversation.store.open("anna").messages == messages
    assert say(QUESTION).strip() == answer  # what a turn that is kept says
    assert not same(conversation.session.memory, memory)


def test_a_question_to_the_memory_is_refused_while_it_is_off(conversation, say):
    assert "the memory" not in say("/off", QUESTION).splitlines()[-1]
    assert "/ask reads the memory, which is off" in say(f"/ask {QUESTION}")


def test_the_context_is_forgotten_and_the_memory_is_not(conversation, say):
    say("Anna likes teal.")
    before = conversation.session.memory.clone()
    say("/forget")
    assert conversation.session.messages == []
    assert same(conversation.session.memory, before)
    assert before.tokens[0] > 0


def test_a_named_session_is_on_the_disk_after_every_turn(conversation, say, tmp_path):
    say("/save anna")
    store = conversation.store
    for line in ("Anna likes teal.", "/forget", QUESTION):
        say(line)
        saved = store.open("anna")
        assert same(saved.memory, conversation.session.memory)
        assert saved.messages == conversation.session.messages


def test_a_saved_session_goes_on_after_a_reset(conversation, say):
    say("Anna likes teal.", "/save anna")
    memory, messages = conversation.session.memory.clone(), conversation.session.messages
    say("/reset", "Bob lives in Rome.")
    assert conversation.name is None
    assert not same(conversation.session.memory, memory)
    say("/load anna")
    assert same(conversation.session.memory, memory)
    assert conversation.session.messages == messages


def test_off_is_the_backbone_and_leaves_no_trace(conversation, say):
    say("Anna likes teal.", "/save anna", "/forget")
    memory = conversation.session.memory.clone()
    with_memory, without = asked(conversation.store.model, memory), asked(conversation.store.model)
    assert with_memory != without  # or this would show nothing
    assert without in say("/off", QUESTION)
    assert len(conversation.bare.messages) == 2
    assert same(conversation.session.memory, memory)
    assert with_memory in say("/on", QUESTION)
    assert len(conversation.session.messages) == 2


def test_off_sees_the_context_that_there_is_now(conversation, say):
    say("Anna likes teal.", "/off")
    assert len(conversation.bare.messages) == 2
    say("/forget")
    assert conversation.bare.messages == []


DATED = TEMPLATE.replace("<|im_start|>assistant\n{% endif %}", "<|im_start|>assistant\n{{ day }}{% endif %}")


@pytest.fixture
def dated(tmp_path):
    """A conversation whose chat template takes an option, which its store gives to new sessions."""
    tokenizer = chat_tokenizer()
    tokenizer.chat_template = DATED
    store = SessionStore(tmp_path / "sessions", chat_model(spread=0.5), tokenizer, template_options={"day": "Anna"})
    return Conversation(store, SHORT)


def prompts(monkeypatch, conversation, text):
    """The text of what a chat generates an answer to."""
    seen, generate = [], type(conversation.store.model).generate

    def sees(model, *args, input_ids, **options):
        seen.append(conversation.store.tokenizer.decode(input_ids[0]))
        return generate(model, *args, input_ids=input_ids, **options)

    monkeypatch.setattr(type(conversation.store.model), "generate", sees)
    list(conversation.stream(text))
    return seen


def test_off_renders_as_the_session_does(dated, monkeypatch):
    dated.switch_off()
    (prompt,) = prompts(monkeypatch, dated, QUESTION)
    assert prompt.endswith("assistant \n Anna")


def test_off_renders_as_a_loaded_session_does(dated, monkeypatch):
    other = ChatSession(dated.store.model, dated.store.tokenizer, template_options={"day": "Bob"})
    dated.store.save("bob", other)
    dated.switch_off()
    dated.load("bob")
    (prompt,) = prompts(monkeypatch, dated, QUESTION)
    assert prompt.endswith("assistant \n Bob")


def test_a_reset_keeps_the_templates_options(dated):
    assert dated.session.template_options == {"day": "Anna"}
    dated.reset()
    assert dated.session.template_options == {"day": "Anna"}


def test_mistakes_are_told_and_change_nothing(conversation, say, tmp_path):
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    say("Anna likes teal.", "/save anna")
    before = conversation.session.memory.clone()
    for line, told in {
        "/nope": "/observe, /remember, /ask, /forget, /memory, /save, /load, /off, /on, /reset, /help, /exit",
        "/": "/observe",
        "/save": "NAME",
        "/save Anna/..": "not accepted",
        "/forget all": "takes no argument",
        "/load bob": "there are anna",
        "/observe /no/such/file": "/no/such/file",
        f"/observe {tmp_path / 'latin.txt'}": "utf-8",
    }.items():
        assert told in say(line), line
    assert same(conversation.session.memory, before)
    assert conversation.name == "anna"
    assert len(conversation.session.messages) == 2


def test_another_process_s_save_is_not_overwritten(conversation, say):
    say("/save anna")
    other = conversation.store.open("anna")
    other.observe("Bob lives in Rome.")
    conversation.store.save("anna", other)
    assert "would be lost" in say("Anna likes teal.")
    assert same(conversation.store.open("anna").memory, other.memory)
    assert len(conversation.session.messages) == 2  # the turn itself is not lost: it can be saved elsewhere
    say("/save anna-2")
    assert same(conversation.store.open("anna-2").memory, conversation.session.memory)


def test_help_lists_every_command(say):
    output = say("/help")
    assert all(f"/{name}" in output for name in COMMANDS)


@pytest.mark.parametrize("line", ["/exit", None])
def test_the_end(conversation, say, line):
    say(*filter(None, [line]), *(["Hello"] if line else []))
    assert conversation.session.messages == []


@pytest.mark.parametrize("switch", ["/on", "/off"])
def test_ctrl_c_stops_the_answer_and_nothing_else(conversation, say, monkeypatch, switch):
    say("Anna likes teal.", switch)
    memory, turns = conversation.session.memory.clone(), conversation.turns
    conversation.generation = {"max_new_tokens": 4000, "min_new_tokens": 4000, "do_sample": False}
    out, pieces = Console.out, []

    def press(console, piece, **options):
        pieces.append(piece)
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)  # held down
        out(console, piece, **options)

    monkeypatch.setattr(Console, "out", press)
    assert "stopped" in say(QUESTION)
    assert len(pieces) == 1
    assert conversation.turns == turns
    assert same(conversation.session.memory, memory)
    monkeypatch.undo()
    conversation.generation = SHORT
    say(QUESTION)
    assert conversation.turns == turns + 2
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_breaks_off_a_line_or_a_command(conversation, monkeypatch):
    lines = iter(["/observe x", KeyboardInterrupt, "Hello there", EOFError])

    def read(prompt=""):
        line = next(lines)
        if isinstance(line, str):
            return line
        raise line

    read_text = Path.read_text

    def interrupted(path, *options, **named):
        if path.name == "x":
            raise KeyboardInterrupt
        return read_text(path, *options, **named)  # a package that is imported meanwhile reads files, too

    monkeypatch.setattr("builtins.input", read)
    monkeypatch.setattr(Path, "read_text", interrupted)
    terminal.talk(conversation, Console(quiet=True))
    assert len(conversation.session.messages) == 2


def test_an_answer_cannot_steer_the_terminal(conversation, monkeypatch, say):
    monkeypatch.setattr(ChatSession, "stream", lambda *_, **__: iter(["\x1b]0;title\x07a\r\x9b2J", "b\n\tc 👩‍🚀"]))
    output = say("Hello")
    assert "]0;titlea2Jb\n        c 👩‍🚀" in output


def test_an_error_cannot_steer_the_terminal_and_a_pipe_is_not_waited_for(say, tmp_path):
    assert "]0;x" in (output := say("/\x1b]0;x\x07"))
    assert "\x1b]0;" not in output
    os.mkfifo(tmp_path / "pipe")
    assert "is a pipe" in say(f"/observe {tmp_path / 'pipe'}")


@pytest.mark.parametrize(("shape", "width"), [((1, 4, 4), 4), ((3, 5, 5), 15)])
def test_the_picture_has_a_map_of_every_layer(shape, width):
    names = [f"model.layers.{layer}.self_attn" for layer in (10, 2)]  # in any order, as in a file
    states = {name: torch.randn(1, *shape) for name in names}
    states[names[0]][0, 0, 0, 0] = 100.0
    memory = DeltaMemState(Snapshot.from_flat({**states, "@tokens": torch.tensor([7])}))
    console = Console(width=100, color_system="truecolor", force_terminal=True)
    with console.capture() as captured:
        console.print(picture(memory, colours=True))
    plain = re.sub(r"\x1b\[[^m]*m", "", captured.get())
    labels = [f"{label} {states[name].norm():.2f}" for label, name in zip(("10", "2"), names, strict=True)]
    assert re.search(rf"{labels[1]}\s+{labels[0]}", plain)
    rows = [line for line in plain.splitlines() if "▀" in line]
    assert len(rows) == (shape[-1] + 1) // 2
    assert all(re.fullmatch(rf"▀{{{width}}}\s+▀{{{width}}}\s*", row) for row in rows)
    assert "\x1b[38;2;255;150;30" in captured.get()  # the largest number is in full colour
    with console.capture() as captured:
        console.print(picture(memory, colours=False))
    assert "▀" not in captured.get()


def test_an_empty_memory_has_a_picture(conversation, say):
    assert "0 tokens written" in say("/memory")


def test_the_command_reads_lines(arguments):
    result = CliRunner().invoke(app, [*arguments, "--max-new-tokens", "3"], input="Hello there\n/memory\n/save anna\n/exit\n")
    assert result.exit_code == 0, result.output
    assert "a memory of 128 bytes" in " ".join(result.output.split())
    assert "Saved in" in result.output


@pytest.mark.parametrize(("data", "warned"), [(GENERATED_FACTS, True), ("generated facts, `my.jsonl`", False), (None, False)])
def test_an_adapter_that_knows_no_dialogue_is_named(arguments, tmp_path, data, warned):
    if data is not None:
        note_training(tmp_path / "adapter", data)
    result = CliRunner().invoke(app, arguments, input="/exit\n")
    assert ("not on dialogue" in " ".join(result.output.split())) is warned


def test_a_chat_may_begin_with_the_backbone_alone(arguments, tmp_path):
    note_training(tmp_path / "adapter", GENERATED_FACTS)
    result = CliRunner().invoke(app, [*arguments, "--no-adapter"], input="/ask who?\n/on\n/exit\n")
    assert "/ask reads the memory, which is off" in result.output
    assert "The memory is on." in result.output
    assert "not on dialogue" not in result.output


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (["--dtype", "int8"], "int8"),
        (["--device", "nowhere"], "nowhere"),
        (["--adapter", "/no/adapter"], "/no/adapter"),
        (["--adapter", "nosuch"], "there is no adapter 'nosuch'"),
    ],
)
def test_wrong_options_end_in_one_line(arguments, wrong, named):
    result = CliRunner().invoke(app, [*arguments, *wrong], input="")
    assert result.exit_code == 2
    assert named in result.stderr
    assert "Traceback" not in result.output


# ------------------------------------------------------------------------------------------------ in a terminal of its own


class Terminal:
    """A process on a pseudo-terminal: what was printed so far, and keys."""

    def __init__(self, arguments):
        self.seen = ""
        self.process_id, self.handle = pty.fork()
        if self.process_id == 0:  # it has imported what another program would take seconds to import
            sys.stdin, sys.stdout, sys.stderr = (os.fdopen(at, mode) for at, mode in enumerate("rww"))
            try:
                app(arguments)
            except SystemExit as end:
                os._exit(end.code)
            finally:  # by no way into the tests
                os._exit(1)

    def type(self, keys):
        os.write(self.handle, keys.encode())

    def wait_for(self, text, seconds=60):
        """Reads until a text has come, and takes what came so far out."""
        end = time.monotonic() + seconds
        while text not in self.seen:
            ready, _, _ = select.select([self.handle], [], [], max(0, end - time.monotonic()))
            assert ready, f"{text!r} did not come; there is {self.seen!r}"
            self.seen += os.read(self.handle, 4096).decode(errors="replace")
        before, _, self.seen = self.seen.partition(text)
        return before

    def close(self):
        """Closes the terminal, as one closes its window, and gives the process's exit status."""
        os.close(self.handle)
        return os.waitstatus_to_exitcode(os.waitpid(self.process_id, 0)[1])


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="this system has no hang-up")
def test_a_closed_terminal_loses_nothing_that_was_saved(arguments, tmp_path):
    shell = Terminal([*arguments, "--max-new-tokens", "100000"])
    shell.wait_for("/help lists the commands.")
    shell.wait_for("> ")
    shell.type("/save anna\n")
    shell.wait_for("anna> ")
    (tmp_path / "facts.txt").write_text("Anna likes teal.")
    shell.type(f"/observe {tmp_path / 'facts.txt'}\n")
    told = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", shell.wait_for(" written to the memory").splitlines()[-1])
    shell.wait_for("anna> ")
    shell.type("Hello there\n")
    shell.wait_for("Hello there\r\n")
    shell.type("\x03")  # Ctrl-C
    shell.wait_for("anna> ")
    shell.type("\x1b[A\n")  # arrow up: the history
    shell.wait_for("Hello there\r\n")
    assert shell.close() == 128 + signal.SIGHUP
    folder = tmp_path / "sessions" / "anna"
    assert os.listdir(folder) == ["session.safetensors"]  # nothing half written
    again = CliRunner().invoke(app, arguments, input="/load anna\n/exit\n")
    assert f"Continuing anna: {told}" in again.output
