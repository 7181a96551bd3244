"""A real browser that a test drives: what a person would click and type, and what the page says then."""

import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager

from browser import BROWSER

# The browser reads commands at the file descriptor 3 and answers at 4. A program in between puts the pipes there.
PIPES_AT_3_AND_4 = """
import os, sys
from fcntl import F_DUPFD, fcntl
ends = [fcntl(int(end), F_DUPFD, 10) for end in sys.argv[1:3]]
for place, end in enumerate(ends, 3):
    os.dup2(end, place)
    os.close(end)
os.execv(sys.argv[3], sys.argv[3:])
"""


class Page:
    """A page in a browser, by Chromium's DevTools protocol over two pipes.

    Attributes:
        complaints: what the browser's console says of errors, and exceptions that nothing caught.
        requested: the addresses that the page asked for.
        dialogs: the questions that the page asked; each is answered with yes.
    """

    def __init__(self, send, receive):
        self._send, self._receive, self._number, self._session = send, receive, 0, {}
        self.complaints, self.requested, self.dialogs = [], [], []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = {"sessionId": self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method, **params):
        self._number += 1
        number = self._number
        self._post({"id": number, "method": method, "params": params, **self._session})
        while True:
            message = self._next()
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]
            self._note(message)

    def run(self, script):
        """The value of a script, which may be a promise."""
        done = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def until(self, script, seconds=60):
        """Wait until a script's value is true; return the value."""
        end = time.monotonic() + seconds
        while not (value := self.run(script)):
            assert time.monotonic() < end, f"never true: {script}\n{self.run('document.body.innerText')}"
            time.sleep(0.05)
        return value

    def press(self, key, code=None, text=None):
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, windowsVirtualKeyCode=code or ord(key), text=text or "")
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code or ord(key))

    def enter(self):
        self.press("Enter", 13, "\r")

    def tab(self):
        self.press("Tab", 9)

    def type(self, text):
        self.call("Input.insertText", text=text)

    def _post(self, message):
        self._send.write(json.dumps(message).encode() + b"\0")
        self._send.flush()

    def _next(self):
        data = bytearray()
        while (byte := self._receive.read(1)) != b"\0":
            assert byte, "the browser ended"
            data += byte
        return json.loads(data)

    def _note(self, message):
        params = message.get("params", {})
        match message.get("method"):
            case "Runtime.exceptionThrown":
                self.complaints.append(params["exceptionDetails"])
            case "Runtime.consoleAPICalled":
                self.complaints.append(params["args"])
            case "Log.entryAdded":
                self.complaints.append(params["entry"])
            case "Network.requestWillBeSent":
                self.requested.append(params["request"]["url"])
            case "Page.javascriptDialogOpening":
                self.dialogs.append(params["message"])
                self._number += 1
                self._post(
                    {"id": self._number, "method": "Page.handleJavaScriptDialog", "params": {"accept": True}, **self._session}
                )


@contextmanager
def driven(folder):
    """A new page in a browser that ends with the block."""
    to_browser, from_test = os.pipe()
    to_test, from_browser = os.pipe()
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--remote-debugging-pipe",
        f"--user-data-dir={folder / 'profile'}",
    ]
    command = [sys.executable, "-c", PIPES_AT_3_AND_4, str(to_browser), str(from_browser), BROWSER, *options]
    process = subprocess.Popen(
        command, pass_fds=(to_browser, from_browser), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    os.close(to_browser)
    os.close(from_browser)
    try:
        with os.fdopen(from_test, "wb") as send, os.fdopen(to_test, "rb") as receive:
            yield Page(send, receive)
    finally:
        process.terminate()
        process.wait()
