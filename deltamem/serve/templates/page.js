"use strict";
const $ = (id) => document.getElementById(id);
const MODEL = document.querySelector("main").dataset.model;
let opened = $("memory").value;  // the memory that is shown; the field may be in the middle of an edit
let chat = [];                   // the conversation, as it is sent
let running = null;              // aborts the answer that is being streamed
let longest = 200;               // tokens of an answer
let shown = 0;                   // counts calls of `show`, so that a late answer does not overwrite a newer one

// ------------------------------------------------------------------------------------------------ requests

const memoryPath = (rest = "") => `/v1/memories/${encodeURIComponent(opened)}${rest}`;

async function request(path, method = "GET", body = undefined, signal = undefined) {
  const headers = {};
  if (body !== undefined) headers["Content-Type"] = "application/json";
  if ($("key").value) headers["Authorization"] = `Bearer ${$("key").value}`;
  let response;
  try {
    response = await fetch(path, { method, headers, body: body && JSON.stringify(body), signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer. Check that it runs, and try again.");
  }
  if (response.ok) return response;
  if (response.status === 401) {
    $("with-key").hidden = false;
    $("key").focus();
    throw new Error($("key").value ? "The server does not accept this key." : "The server asks for a key. Type yours, and open the memory.");
  }
  const refused = await response.json().catch(() => ({ error: { message: `the server failed with status ${response.status}` } }));
  throw Object.assign(new Error(refused.error.message), { status: response.status });
}

// Run something a person asked for, and show what went wrong. What follows from it keeps an earlier error in sight.
async function attempt(action, keep = false) {
  if (!keep) $("error").hidden = true;
  try {
    await action();
  } catch (error) {
    if (error.name === "AbortError") return;
    $("error").textContent = error.message;
    $("error").hidden = false;
  }
}

const announce = (text) => { $("status").textContent = text; };

// ------------------------------------------------------------------------------------------------ conversation

function bubble(name, kind) {
  const place = document.createElement("p"), label = document.createElement("b"), text = document.createElement("span");
  place.className = kind;
  label.textContent = name;
  place.append(label, text);
  $("chat").append(place);
  $("chat").hidden = false;
  $("hint").hidden = true;
  return text;
}

async function* pieces(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const events = (waiting + value).split("\n\n");
    waiting = events.pop();
    for (const event of events) {
      const data = event.replace(/^data: /, "");
      if (data === "[DONE]") return;
      const parsed = JSON.parse(data);
      if (parsed.error) throw new Error(parsed.error.message);
      yield parsed.choices[0].delta.content ?? "";
    }
  }
}

async function answer(messages, memory, text) {
  const body = { model: MODEL, messages, memory, stream: true, temperature: 0, max_tokens: longest };
  let whole = "";
  for await (const piece of pieces(await request("/v1/chat/completions", "POST", body, running.signal))) {
    whole += piece;
    text.textContent = whole;
    $("chat").scrollTop = $("chat").scrollHeight;
  }
  return whole;
}

async function say(content) {
  const asked = [...chat, { role: "user", content }];
  const bubbles = [];
  const add = (name, kind) => {
    const text = bubble(name, kind);
    bubbles.push(text.parentElement);
    return text;
  };
  running = new AbortController();
  $("send").disabled = true;
  $("stop").disabled = false;
  $("chat").setAttribute("aria-busy", "true");  // a screen reader reads the answer when it is complete
  add("You", "user").textContent = content;
  try {
    if ($("compare").checked) await answer(asked, { write: false }, add("Without the memory", "without"));
    const memory = { id: opened };
    if ($("read-only").checked) memory.write = false;
    const said = await answer(asked, memory, add("With the memory", "assistant"));
    chat = [...asked, { role: "assistant", content: said }];
  } catch (error) {
    for (const one of bubbles) one.classList.add("dropped");
    announce("The turn was taken back.");
    if (!$("text").value) $("text").value = content;
    throw error;
  } finally {
    running = null;
    $("send").disabled = false;
    $("stop").disabled = true;
    $("chat").removeAttribute("aria-busy");
  }
}

// ------------------------------------------------------------------------------------------------ memory

async function show() {
  const number = ++shown;
  let memory = null, entries = [], writes = [], legend = "";
  const { data: names, has_more: more } = await (await request("/v1/memories?limit=1000")).json();
  if (more || names.some((one) => one.id === opened)) {
    try {
      memory = await (await request(memoryPath())).json();
    } catch (error) {
      if (error.status !== 404) throw error;
    }
  }
  if (memory?.journal) {
    entries = (await (await request(memoryPath("/messages"))).json()).data.filter((entry) => entry.written);
    legend = "The stronger a word's colour, the more it wrote. The bar is how much of a message is left.";
    try {
      writes = (await (await request(memoryPath("/writes"))).json()).data;
    } catch (error) {
      legend = `What each word wrote cannot be shown: ${error.message}`;
    }
  } else if (memory) {
    legend = "The server keeps no messages of this memory. One that is made by deltamem serve --journal has them.";
  }
  if (number !== shown) return;
  $("names").replaceChildren(...names.map((one) => new Option(one.id)));
  $("state").textContent = memory ? described(memory) : "Nothing is written yet.";
  $("legend").textContent = legend;
  $("legend").hidden = !legend;
  const chosen = $("snapshots").value, snapshots = memory?.snapshots ?? [];
  $("snapshots").replaceChildren(...snapshots.map((one) => new Option(one.name, one.name)));
  if (snapshots.some((one) => one.name === chosen)) $("snapshots").value = chosen;
  $("snapshots").disabled = $("rollback").disabled = !snapshots.length;
  $("snapshot").disabled = $("delete").disabled = !memory;
  const byId = new Map(writes.map((one) => [one.id, one]));
  const most = Math.max(1e-12, ...writes.flatMap((one) => one.words.map((word) => word.change)));
  $("messages").replaceChildren(...entries.map((entry) => message(entry, byId.get(entry.id), most)));
}

function described(memory) {
  const count = (number, what) => `${number.toLocaleString("en")} ${what}${number === 1 ? "" : "s"}`;
  const changed = new Date(memory.updated * 1000).toLocaleString();
  return `${count(memory.tokens, "token")} written in ${count(memory.turn, "turn")}, kept in ${count(memory.bytes, "byte")}. Changed ${changed}.`;
}

function element(kind, className, text = "") {
  const made = document.createElement(kind);
  made.className = className;
  made.textContent = text;
  return made;
}

function message(entry, write, most) {
  const item = document.createElement("li"), text = element("div", "text", write ? "" : entry.content);
  item.append(element("div", "role", entry.role === "user" ? "You" : entry.role === "assistant" ? "Model" : entry.role), text);
  for (const word of write?.words ?? []) {
    const part = element("span", "v", word.text);
    part.style.setProperty("--v", (word.change / most).toFixed(3));
    part.title = `wrote ${word.change.toPrecision(3)}`;
    text.append(part);
  }
  const forget = element("button", "", "Forget this");
  forget.type = "button";
  forget.setAttribute("aria-label", `Forget this: ${entry.content.slice(0, 60)}`);
  forget.addEventListener("click", () => attempt(async () => {
    const place = [...$("messages").children].indexOf(item);
    forget.disabled = true;
    try {
      await request(memoryPath(`/messages/${entry.id}`), "DELETE");
    } finally {
      forget.disabled = false;
    }
    await show();
    announce("Forgotten.");
    const left = $("messages").children;  // the button that was pressed is gone: go on at the next one
    (left[Math.min(place, left.length - 1)]?.querySelector("button") ?? $("memory-title")).focus();
  }));
  item.append(forget);
  if (write) {
    const left = element("div", "left"), bar = element("i", ""), share = `${Math.round(write.left * 100)}% left`;
    bar.style.setProperty("--v", write.left);
    left.append(bar);
    item.append(left, element("div", "share", share));
  }
  return item;
}

// ------------------------------------------------------------------------------------------------ buttons

function newConversation() {
  running?.abort();
  chat = [];
  $("chat").replaceChildren();
  $("chat").hidden = true;
  $("hint").hidden = false;
}

$("who").addEventListener("submit", (event) => {
  event.preventDefault();
  opened = $("memory").value;
  newConversation();
  attempt(show);
});
$("say").addEventListener("submit", (event) => {
  event.preventDefault();
  const content = $("text").value.trim();
  if (!content || running) return;
  $("text").value = "";
  attempt(() => say(content)).then(() => attempt(show, true));
});
$("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $("say").requestSubmit();
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") running?.abort();
});
$("stop").addEventListener("click", () => {
  running?.abort();
  $("text").focus();
});
$("drop").addEventListener("click", () => {
  newConversation();
  $("text").focus();
});
$("snapshot").addEventListener("click", () => attempt(async () => {
  const now = new Date(), local = new Date(now - now.getTimezoneOffset() * 60000);
  const taken = await (await request(memoryPath("/snapshots"), "POST", { name: local.toISOString().replace("T", "_").slice(0, 19) })).json();
  await show();
  $("snapshots").value = taken.name;
  announce(`Snapshot ${taken.name} was taken.`);
}));
$("rollback").addEventListener("click", () => attempt(async () => {
  const name = $("snapshots").value;
  if (!confirm(`Go back to ${name}? What was written since then is deleted.`)) return;
  await request(memoryPath("/rollback"), "POST", { name });
  newConversation();
  await show();
  announce(`The memory is as it was at ${name}.`);
}));
$("delete").addEventListener("click", () => attempt(async () => {
  if (!confirm(`Delete the memory ${opened} with its messages and snapshots?`)) return;
  await request(memoryPath(), "DELETE");
  newConversation();
  await show();
  announce("The memory was deleted.");
  $("text").focus();
}));
attempt(show);
