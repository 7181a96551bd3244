"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const conversation = data.conversation;
const memories = data.memories;
const LAYERS = memories.layer_names.length;
const CELL_HEIGHT = 7;
const STATE_SIZE = 88;
const SMALL_STATE_SIZE = 32;

/** An element with text, appended to a parent. */
function add(parent, tag, text = "", className = "") {
  const element = document.createElement(tag);
  element.textContent = text;
  if (className) element.className = className;
  parent.append(element);
  return element;
}

/** The numbers of a packed tensor, and where the ones at the first indices begin. */
function unpack({ shape, scale, data: text }) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  const numbers = Float32Array.from({ length: bytes.length / 2 }, (_, index) => view.getInt16(2 * index, true) * scale);
  const at = (...indices) => {
    let offset = 0;
    shape.forEach((size, axis) => (offset = offset * size + (indices[axis] ?? 0)));
    const length = shape.slice(indices.length).reduce((product, size) => product * size, 1);
    return numbers.subarray(offset, offset + length);
  };
  return { shape, numbers, at };
}

const unpackAll = (packed) => Object.fromEntries(Object.entries(packed).map(([name, tensor]) => [name, unpack(tensor)]));
const most = (numbers) => numbers.reduce((largest, number) => Math.max(largest, Math.abs(number)), 0);
/** A function that places numbers between the least, 0, and the most, 1. */
function scaleOf(numbers) {
  const [least, largest] = numbers.reduce(([low, high], number) => [Math.min(low, number), Math.max(high, number)], [Infinity, -Infinity]);
  return Object.assign((number) => (number - least) / (largest - least || 1), { least, largest });
}

const norm = (numbers) => Math.sqrt(numbers.reduce((sum, number) => sum + number * number, 0));
const short = (number) => (number === 0 ? "0" : Number(number.toPrecision(3)).toString());
const visible = (text) => text.replaceAll("\n", "↵\n"); // line breaks are tokens as well
const layerName = (row) => (row === 0 ? "all layers" : `layer ${memories.layer_names[row - 1]}`);

/** A colour of the style sheet as [red, green, blue]. */
function colour(name) {
  const hex = getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  return [1, 3, 5].map((start) => parseInt(hex.slice(start, start + 2), 16));
}

/** Paint a matrix on a canvas; `level(row, column)` ranges from -1 to 1. */
function paint(canvas, rows, columns, level, positive = "--plus") {
  const [surface, plus, minus] = ["--surface", positive, "--minus"].map(colour);
  canvas.width = columns;
  canvas.height = rows;
  const context = canvas.getContext("2d");
  const image = context.createImageData(columns, rows);
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++) {
      const value = level(row, column);
      const share = Math.min(Math.abs(value), 1);
      const [end, pixel] = [value < 0 ? minus : plus, 4 * (row * columns + column)];
      for (let part = 0; part < 3; part++) image.data[pixel + part] = surface[part] + share * (end[part] - surface[part]);
      image.data[pixel + 3] = 255;
    }
  }
  context.putImageData(image, 0, 0);
}

// ------------------------------------------------------------------------------------------------- the conversation

const MEANINGS = {
  gate: [
    "Coloured by how far each token opened the write gate β: 0 writes nothing, 1 replaces what was there. Averaged over rows and states.",
    "The mean write gate of a turn's tokens.",
  ],
  change: [
    "Coloured by how much each token changed the state: the Frobenius norm of the state after it minus the state before.",
    "The Frobenius norm of the state after a turn minus the state before it.",
  ],
  error: [
    "Coloured by the delta rule's error |βv − βSk|: what a token writes minus what the memory held under its key. " +
      "Large for new or changed content, small for what is already known.",
    "The mean norm of the error over a turn's tokens.",
  ],
};

function showConversation() {
  const [cells, byTurn, left] = [unpackAll(conversation.cells), unpackAll(conversation.by_turn), unpack(conversation.left)];
  const tokens = conversation.pieces.length;
  const turnName = (turn) => `${turn + 1} ${conversation.turns[turn].role}`;
  const turnOf = conversation.turns.flatMap((turn, index) => Array(turn.cells).fill(index));
  const say = (text) => (byId("readout").textContent = text);
  const chosen = () => [byId("quantity").value, Number(byId("layer").value)];

  for (let row = 0; row <= LAYERS; row++) add(byId("layer"), "option", row === 0 ? "all" : memories.layer_names[row - 1]).value = row;

  const spans = [];
  conversation.turns.forEach((turn, index) => {
    const block = add(byId("conversation"), "div", "", "turn");
    add(block, "b", turnName(index));
    const text = add(block, "div");
    for (let cell = 0; cell < turn.cells; cell++) {
      const [piece, mark] = [conversation.pieces[spans.length], conversation.marks[spans.length]];
      spans.push(add(text, "span", visible(piece), mark ? "v mark" : "v"));
    }
  });
  const place = new Map(spans.map((span, index) => [span, index]));
  byId("conversation").addEventListener("pointerover", (event) => {
    if (place.has(event.target)) describe(place.get(event.target), chosen()[1]);
  });
  const describe = (token, row) => {
    const figures = Object.entries({ gate: "β", change: "change", error: "error" });
    const said = figures.map(([quantity, name]) => `${name} ${short(cells[quantity].at(row, token)[0])}`).join(" · ");
    say(`${JSON.stringify(conversation.pieces[token])} · ${layerName(row)} · ${said}`);
  };

  const strip = add(byId("strip"), "canvas");
  const width = Math.max(3, Math.min(12, Math.floor(1100 / tokens)));
  strip.style.width = `${width * tokens}px`;
  strip.style.height = `${CELL_HEIGHT * LAYERS}px`;
  const labels = add(byId("strip"), "div");
  conversation.turns.forEach((turn, index) => (add(labels, "span", turnName(index)).style.width = `${width * turn.cells}px`));
  strip.addEventListener("pointermove", (event) => {
    const token = Math.min(Math.floor(event.offsetX / width), tokens - 1);
    const layer = Math.min(Math.floor(event.offsetY / CELL_HEIGHT), LAYERS - 1);
    if (token >= 0 && layer >= 0) describe(token, layer + 1);
  });

  function showTurns(quantity) {
    const measured = byTurn[quantity];
    const layers = measured.at().slice(measured.shape[1]);
    const all = measured.at(0);
    const scales = [scaleOf(all), scaleOf(layers)];
    const table = byId("turns");
    table.replaceChildren();
    const head = add(add(table, "thead"), "tr");
    for (const name of ["turn", "all", ...memories.layer_names]) add(head, "th", name);
    const body = add(table, "tbody");
    conversation.shown.forEach((turn, index) => {
      const line = add(body, "tr");
      add(line, "th", turnName(turn));
      for (let row = 0; row <= LAYERS; row++) {
        const value = measured.at(row, index)[0];
        const cell = add(line, "td", row === 0 ? short(all[index]) : "", "v");
        cell.style.setProperty("--v", 0.85 * scales[Math.min(row, 1)](value));
        cell.onpointerover = () => say(`turn ${turnName(turn)} · ${layerName(row)} · ${quantity} ${short(value)}`);
      }
    });
  }

  function showLeft(row) {
    const table = byId("left");
    table.replaceChildren();
    const head = add(add(table, "thead"), "tr");
    add(head, "th", "after ↓ of →");
    for (const turn of conversation.shown) add(head, "th", turnName(turn));
    const body = add(table, "tbody");
    conversation.shown.forEach((turn, after) => {
      const line = add(body, "tr");
      add(line, "th", turnName(turn));
      conversation.shown.forEach((of, column) => {
        if (column > after) return;
        const share = left.at(row, after, column)[0];
        const cell = add(line, "td", `${Math.round(100 * share)}%`, "v");
        cell.style.setProperty("--v", 0.85 * Math.min(share, 1));
        cell.onpointerover = () => say(`${layerName(row)} · of turn ${turnName(of)}, after turn ${turnName(turn)}: ${cell.textContent}`);
      });
    });
  }

  function draw() {
    const [quantity, row] = chosen();
    const [measured, turned] = [cells[quantity], MEANINGS[quantity]];
    byId("quantity-meaning").textContent = turned[0];
    byId("turns-meaning").textContent = `${turned[1]} The first column is all layers together; the other columns share a separate scale.`;
    const of = measured.at(row);
    const scale = scaleOf(of);
    byId("token-least").textContent = short(scale.least);
    byId("token-most").textContent = short(scale.largest);
    spans.forEach((span, token) => span.style.setProperty("--v", 0.85 * scale(of[token])));
    const layers = scaleOf(measured.at().slice(tokens));
    paint(strip, LAYERS, tokens, (layer, token) => layers(measured.at(layer + 1, token)[0]), "--much");
    showTurns(quantity);
    showLeft(row);
  }
  byId("messages-only").addEventListener("change", (event) => {
    byId("conversation").classList.toggle("messages-only", event.target.checked);
  });
  byId("quantity").addEventListener("change", draw);
  byId("layer").addEventListener("change", draw);
  return draw;
}

// ------------------------------------------------------------------------------------------------------ the memories

function showMemories() {
  const layers = memories.layers.map((layer) => ({ ...layer, tensor: unpack(layer.states) }));
  for (const layer of layers) layer.most = most(layer.tensor.numbers) || 1;
  const states = layers[0].tensor.shape[1];
  const slider = byId("moment");
  slider.max = memories.names.length - 1;
  slider.value = conversation ? slider.max : 0;

  const figures = layers.map((layer, index) => {
    const figure = add(byId("states"), "figure");
    const row = add(figure, "div");
    const canvases = Array.from({ length: states }, () => add(row, "canvas"));
    for (const canvas of canvases) canvas.style.width = canvas.style.height = `${STATE_SIZE}px`;
    const caption = add(figure, "figcaption");
    add(caption, "b", `layer ${memories.layer_names[index]}`);
    return { canvases, text: add(caption, "span") };
  });

  /** Paint one layer's states; `numbers` is `[states, r, r]`. */
  function paintStates(canvases, layer, numbers) {
    const r = layer.tensor.shape[2];
    canvases.forEach((canvas, state) =>
      paint(canvas, r, r, (row, column) => numbers[(state * r + row) * r + column] / layer.most),
    );
  }

  function draw() {
    const moment = Number(slider.value);
    byId("moment-name").textContent = `${memories.names[moment]}: ${memories.tokens[moment]} tokens written`;
    layers.forEach((layer, index) => {
      paintStates(figures[index].canvases, layer, layer.tensor.at(moment));
      figures[index].text.textContent = `\nnorm ${short(layer.norms[moment])}\nrank ${layer.ranks[moment].toFixed(1)}`;
    });
  }
  const move = (step) => () => {
    slider.value = Number(slider.value) + step;
    draw();
  };
  slider.addEventListener("input", draw);
  byId("back").addEventListener("click", move(-1));
  byId("forth").addEventListener("click", move(1));

  if (!byId("comparison")) return draw;
  const [first, second] = [byId("first"), byId("second")];
  for (const select of [first, second]) memories.names.forEach((name, index) => (add(select, "option", name).value = index));
  first.value = memories.names.length - 2;
  second.value = memories.names.length - 1;

  /** Add a row to the table; for a single layer, also draw its states. */
  function addLine(body, name, a, b, layer) {
    const line = add(body, "tr");
    add(line, "th", name);
    const [product, difference] = [a.reduce((sum, number, index) => sum + number * b[index], 0), b.map((number, index) => number - a[index])];
    const [normA, normB] = [norm(a), norm(b)];
    const cosine = normA && normB ? (product / (normA * normB)).toFixed(3) : "–";
    for (const text of [cosine, short(norm(difference)), short(normA), short(normB)]) add(line, "td", text);
    if (!layer) return;
    for (const numbers of [a, b, difference]) {
      const cell = add(line, "td");
      const canvases = Array.from({ length: states }, () => add(cell, "canvas"));
      for (const canvas of canvases) canvas.style.width = canvas.style.height = `${SMALL_STATE_SIZE}px`;
      paintStates(canvases, layer, numbers);
    }
  }

  function compare() {
    const table = byId("comparison");
    table.replaceChildren();
    const head = add(add(table, "thead"), "tr");
    for (const name of ["layer", "cosine", "distance", "first norm", "second norm", "first", "second", "second − first"]) {
      add(head, "th", name);
    }
    const body = add(table, "tbody");
    const [a, b] = [first, second].map((select) => layers.map((layer) => layer.tensor.at(Number(select.value))));
    const joined = (parts) => Float32Array.from(parts.flatMap((part) => [...part]));
    addLine(body, "all", joined(a), joined(b));
    layers.forEach((layer, index) => addLine(body, memories.layer_names[index], a[index], b[index], layer));
  }
  for (const select of [first, second]) select.addEventListener("change", compare);
  return () => {
    draw();
    compare();
  };
}

const views = [...(conversation ? [showConversation()] : []), showMemories()];
const drawAll = () => views.forEach((draw) => draw());
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
drawAll();
