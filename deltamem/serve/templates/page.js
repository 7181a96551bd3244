"use strict";
const $ = (id) => document.getElementById(id);
let chat = [];          // the conversation, as it is sent
let running = null;     // aborts the answer that is being streamed

// ------------------------------------------------------------------------------------------------ requests

const memoryPath = (rest = "") => `/v1/memories/${encodeURIComponent($("memory").value)}${rest}`;

async function request(path, method = "GET", body = undefined, signal = undefined) {
  const headers = {};
  if (body !== undefined) headers["Content-Type"] = "application/json";
  if ($("key").value) headers["Authorization"] = `Bearer ${$("key").value}`;
  const response = await fetch(path, { method, headers, body: body && JSON.stringify(body), signal });
  if (response.ok) return response;
  const refused = await response.json();
  throw Object.assign(new Error(refused.error.message), { status: response.status });
}

// Run something a person asked for, and show what went wrong.
async function attempt(action) {
  $("error").hidden = true;
  try {
    await action();
  } catch (error) {
    if (error.name === "AbortError") return;
    $("error").textContent = error.message;
    $("error").hidden = false;
  }
}

// ------------------------------------------------------------------------------------------------ conversation

function bubble(name, kind) {
  const place = document.createElement("p"), label = document.createElement("b"), text = document.createElement("span");
  place.className = kind;
  label.textContent = name;
  place.append(label, text);
  $("chat").append(place);
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
  const models = await (await request("/v1/models")).json();
  const body = { model: models.data[0].id, messages, memory, stream: true, temperature: 0, max_tokens: 200 };
  let whole = "";
  for await (const piece of pieces(await request("/v1/chat/completions", "POST", body, running.signal))) {
    whole += piece;
    text.textContent = whole;
    $("chat").scrollTop = $("chat").scrollHeight;
  }
  return whole;
}

async function say(content) {
  const before = chat;
  const asked = [...chat, { role: "user", content }];
  running = new AbortController();
  $("send").disabled = true;
  $("stop").disabled = false;
  bubble("you", "user").textContent = content;
  try {
    if ($("compare").checked) await answer(asked, { write: false }, bubble("without the memory", "without"));
    const memory = { id: $("memory").value };
    if ($("read-only").checked) memory.write = false;
    const said = await answer(asked, memory, bubble("with the memory", "assistant"));
    chat = [...asked, { role: "assistant", content: said }];
  } catch (error) {
    chat = before;
    throw error;
  } finally {
    running = null;
    $("send").disabled = false;
    $("stop").disabled = true;
    await show();
  }
}

// ------------------------------------------------------------------------------------------------ memory

async function show() {
  let memory;
  try {
    memory = await (await request(memoryPath())).json();
  } catch (error) {
    if (error.status !== 404) throw error;
    $("state").textContent = "Nothing is written yet.";
    $("messages").replaceChildren();
    $("snapshots").replaceChildren();
    return;
  }
  const norm = Math.hypot(...Object.values(memory.norms));
  const changed = new Date(memory.updated * 1000).toLocaleString();
  $("state").textContent = `${memory.tokens} tokens written in ${memory.turn} turns, ${memory.bytes} bytes, norm ${norm.toFixed(2)}. Changed ${changed}.`;
  $("snapshots").replaceChildren(...memory.snapshots.map((one) => new Option(one.name, one.name)));
  if (!memory.journal) {
    $("legend").textContent = "The server keeps no messages of this memory (deltamem serve --journal does).";
    $("messages").replaceChildren();
    return;
  }
  $("legend").textContent = "A word's colour is how much it wrote, and the bar below a message how much of that is left.";
  const entries = (await (await request(memoryPath("/messages"))).json()).data.filter((entry) => entry.written);
  let writes = [];
  try {
    writes = (await (await request(memoryPath("/writes"))).json()).data;
  } catch (error) {
    $("legend").textContent = error.message;
  }
  const byId = new Map(writes.map((one) => [one.id, one]));
  const most = Math.max(1e-12, ...writes.flatMap((one) => one.words.map((word) => word.change)));
  $("messages").replaceChildren(...entries.map((entry) => message(entry, byId.get(entry.id), most)));
}

function message(entry, write, most) {
  const item = document.createElement("li"), role = document.createElement("div"), text = document.createElement("div");
  role.className = "role";
  role.textContent = entry.role;
  item.append(role, text);
  if (write) {
    for (const word of write.words) {
      const part = document.createElement("span");
      part.className = "v";
      part.style.setProperty("--v", (word.change / most).toFixed(3));
      part.title = `wrote ${word.change.toPrecision(3)}`;
      part.textContent = word.text;
      text.append(part);
    }
    const left = document.createElement("div"), bar = document.createElement("i"), share = `${Math.round(write.left * 100)}%`;
    left.className = "left";
    left.setAttribute("role", "img");
    left.setAttribute("aria-label", `${share} is left of what this message wrote`);
    left.title = `${share} is left`;
    bar.style.setProperty("--v", write.left);
    left.append(bar);
    item.append(left);
  } else {
    text.textContent = entry.content;
  }
  const forget = document.createElement("button");
  forget.type = "button";
  forget.textContent = "Forget this";
  forget.setAttribute("aria-label", `Forget: ${entry.content.slice(0, 60)}`);
  forget.addEventListener("click", () => attempt(async () => {
    await request(memoryPath(`/messages/${entry.id}`), "DELETE");
    await show();
  }));
  item.append(forget);
  return item;
}

// ------------------------------------------------------------------------------------------------ buttons

function newConversation() {
  chat = [];
  $("chat").replaceChildren();
}

$("who").addEventListener("submit", (event) => {
  event.preventDefault();
  newConversation();
  attempt(show);
});
$("say").addEventListener("submit", (event) => {
  event.preventDefault();
  const content = $("text").value.trim();
  if (!content || running) return;
  $("text").value = "";
  attempt(() => say(content));
});
$("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey) {
    event.preventDefault();
    $("say").requestSubmit();
  }
});
$("stop").addEventListener("click", () => running?.abort());
$("drop").addEventListener("click", newConversation);
$("snapshot").addEventListener("click", () => attempt(async () => {
  await request(memoryPath("/snapshots"), "POST", { name: new Date().toISOString().replace("T", "_").slice(0, 19) });
  await show();
}));
$("rollback").addEventListener("click", () => attempt(async () => {
  if (!$("snapshots").value) return;
  await request(memoryPath("/rollback"), "POST", { name: $("snapshots").value });
  newConversation();
  await show();
}));
$("delete").addEventListener("click", () => attempt(async () => {
  await request(memoryPath(), "DELETE");
  newConversation();
  await show();
}));
attempt(show);
