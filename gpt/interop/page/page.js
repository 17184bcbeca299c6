// The page around the decoder: what is shown, and what happens when someone types, points and clicks.
const EXPECTED = 10; // characters that are listed with their probabilities
const MAPPED = 40; // of the last characters, how many the small maps of attention show
const KEPT = 2000; // characters of which attention is kept, because it takes much memory
const SHOWN = 5000; // characters of a long prompt that are shown
const BREATH = 30; // milliseconds of computing after which the browser may draw and listen
const SPEEDS = [3, 6, 12, 25, 50, 100, 200, 400, Infinity]; // characters per second

const data = JSON.parse(document.getElementById("data").textContent);
const model = loadModel(data);
const tokenizer = new Tokenizer(data.tokenizer);
const byId = (id) => document.getElementById(id);
const textBox = byId("text");

let reader = new CachedModel(model); // its ids are the text
let steps = []; // for each place in the text that has been read: what GPT.read returned, and where the context began
let first = 0, given = 0; // the place of the first character that is shown, and how many were given as a prompt
let take = 0, takes = 0; // which continuation by hand the text is, if any, and how many there were: each draws other random numbers
let chosen = null; // the place of the character that someone points at
let head = { layer: Math.floor(model.config.n_layer / 2), number: 0 }; // whose attention tints the text
let writing = null; // the text that is being written: an object, so that an older one notices that it is over
const past = []; // what undo goes back to

function loadModel({ config, sizes, weights }) {
  let numbers = fromFloat16(weights), tensors = {}, start = 0;
  for (const [name, size] of Object.entries(sizes)) tensors[name] = numbers.subarray(start, (start += size));
  return new GPT(config, tensors);
}

// What other programs may call. logits and attention are those after the last of the ids.
const readAll = (ids) => [...new CachedModel(model).read(Array.from(ids))].pop();
window.gpt = {
  logits: (ids) => readAll(ids).logits,
  attention: (ids) => readAll(ids).attention,
  encode: (text) => tokenizer.encode(text),
  decode: (ids) => tokenizer.decode(Array.from(ids)),
  generate(ids, count, temperature = 0, seed = 1) {
    const own = new CachedModel(model), drawn = [];
    for (let next = Array.from(ids), step; drawn.length < count; drawn.push(...next)) {
      for (step of own.read(next));
      next = [sampleNext(step.logits, { temperature, topK: 0, topP: 1 }, randomNumber(seed, 0, own.ids.length))];
    }
    return drawn;
  },
};

// Writing
async function write() {
  const number = (id) => byId(id).valueAsNumber || 0, own = (writing = {}), end = reader.ids.length + number("length");
  const options = { temperature: number("temperature"), topK: number("top-k"), topP: number("top-p") || 1 }, seed = number("seed");
  byId("stop").disabled = false;
  following = true;
  follow();
  byId("status").textContent = "Writing …";
  let rested = performance.now(), next = [];
  for (;;) {
    for (const step of reader.read(next)) {
      keep(step, reader);
      if (performance.now() - rested > BREATH) {
        if (!(await breathe(own, 0))) return;
        rested = performance.now();
      }
    }
    if (reader.ids.length >= end) break;
    const speed = SPEEDS[number("speed")]; // it may change in the middle
    if (speed < Infinity && !(await breathe(own, 1000 / speed))) return;
    const logits = steps[reader.ids.length - 1].logits;
    next = [sampleNext(logits, options, randomNumber(seed, take, reader.ids.length))];
    append(next);
  }
  stop();
}

// Keep what a model returned for the place that it has read last.
function keep(step, { start, cache }) {
  const place = start + cache.length - 1;
  steps[place] ??= { ...step, start };
  if (steps[place - KEPT]) steps[place - KEPT].attention = null;
}

// Let the browser draw and listen. Whether the text of `own` is still the one that is being written.
async function breathe(own, milliseconds) {
  follow();
  await new Promise((resolve) => setTimeout(resolve, milliseconds));
  return writing === own;
}

function stop() {
  if (!writing) return;
  writing = null;
  follow();
  byId("stop").disabled = true;
  byId("status").textContent = `The text has ${(reader.ids.length - given).toLocaleString("en")} characters after the beginning.`;
}

function remember() {
  past.push({ ids: reader.ids, steps: steps.slice(), first, given, take });
  if (past.length > 50) past.shift();
  byId("undo").disabled = false;
}

function start() {
  let ids, problem = "";
  try {
    ids = tokenizer.encode(byId("prompt").value);
  } catch (error) {
    problem = error.message;
  }
  byId("message").textContent = problem;
  if (problem) return;
  if (!ids.length) ids = [tokenizer.ids.get("\n") ?? 0]; // the model cannot start from nothing
  stop();
  remember();
  begin(ids);
  write();
}

function begin(ids) {
  reader = Object.assign(new CachedModel(model), { ids });
  [steps, first, given, take] = [[], Math.max(0, ids.length - SHOWN), ids.length, 0];
  show();
}

// Show the text that was written when the page was made, and read it, so that one can point at its characters.
async function openText() {
  const ids = tokenizer.encode(data.text), own = (writing = {}), other = new CachedModel(model);
  begin(ids);
  given = tokenizer.encode(byId("prompt").value).length;
  show();
  let rested = performance.now();
  for (const id of ids) {
    for (const step of other.read([id])) keep(step, other);
    if (performance.now() - rested > BREATH) {
      if (!(await breathe(own, 0))) return;
      rested = performance.now();
    }
  }
  reader = other;
  stop();
}

function goOn(place) {
  stop();
  remember();
  reader.rewind(place + 1);
  steps = steps.slice(0, place + 1);
  given = Math.min(given, place + 1);
  take = ++takes;
  show();
  write();
}

function undo() {
  stop();
  const before = past.pop();
  ({ steps, first, given, take } = before);
  reader = Object.assign(new CachedModel(model), { ids: before.ids }); // which are read again when writing continues
  byId("undo").disabled = !past.length;
  show();
}

// Showing
function show() {
  textBox.replaceChildren();
  append(reader.ids.slice(first));
  inspect(null);
}

let decoding = null; // a decoder in the middle of a character of several bytes
function append(ids) {
  const parts = document.createDocumentFragment();
  if (!textBox.childElementCount) decoding = new TextDecoder("utf-8", { ignoreBOM: true });
  for (const id of ids) {
    const place = first + textBox.childElementCount + parts.childElementCount, span = document.createElement("span");
    span.textContent = decoding.decode(tokenizer.pieces[id], { stream: true });
    if (place < given) span.className = "given";
    parts.append(span);
    if (byId("controls").dataset.tint === "surprise") span.style.backgroundColor = surpriseColor(place, id);
  }
  textBox.append(parts);
}

// Keep the end of the text in view, unless someone has scrolled away from it.
let following = true;
const follow = () => following && (textBox.scrollTop = textBox.scrollHeight);

// How much the character at a place surprised the model, in bits, or null if it did not read what came before.
function surprise(place, id = reader.ids[place]) {
  const before = steps[place - 1];
  return before ? -Math.log2(softmax(before.logits)[id]) : null;
}

const surpriseColor = (place, id) => `rgb(var(--tint) / ${Math.min((surprise(place, id) ?? 0) / 8, 0.85)})`;

function paint() {
  const tint = (byId("controls").dataset.tint = document.querySelector("[name=tint]:checked").value);
  const looking = tint === "attention" && chosen ? steps[chosen - 1] : null;
  const row = looking?.attention ? headRow(looking) : [], largest = row.reduce((a, b) => Math.max(a, b), 0);
  Array.from(textBox.children).forEach((span, i) => {
    const place = first + i, weight = looking ? row[place - looking.start] : 0;
    span.style.backgroundColor = tint === "surprise" ? surpriseColor(place) : weight ? `rgb(var(--look) / ${0.8 * Math.sqrt(weight / largest)})` : "";
  });
}

// The weights (S) of one head at a step.
function headRow({ attention }, { layer, number } = head) {
  const S = attention[layer].length / model.config.n_head;
  return attention[layer].subarray(number * S, (number + 1) * S);
}

// Choose the character at a place, or none, and show what the model expected there and where it looked.
function inspect(place, aloud = false) {
  textBox.querySelector(".chosen")?.classList.remove("chosen");
  if (place !== null) textBox.children[place - first].classList.add("chosen");
  chosen = place;
  const before = steps[place - 1], id = reader.ids[place], title = byId("surprise");
  const probabilities = before ? softmax(before.logits) : [];
  const order = Array.from(probabilities.keys()).sort((a, b) => probabilities[b] - probabilities[a]);
  byId("expected").replaceChildren(...order.slice(0, EXPECTED).map((other) => bar(other, probabilities[other], other === id)));
  title.setAttribute("aria-live", aloud ? "polite" : "off");
  title.textContent = place === null ? "What did it expect?" : "It had read nothing before this";
  if (before) {
    const bits = surprise(place).toFixed(1);
    title.textContent = `“${visible(id)}” had ${percent(probabilities[id])}, so it came with ${bits} bits of surprise`;
  }
  if (byId("controls").dataset.tint !== "surprise") paint();
  drawMaps();
}

function bar(id, probability, came) {
  const [item, name, length] = ["li", "b", "i"].map((tag) => document.createElement(tag));
  item.className = came ? "came" : "";
  name.textContent = visible(id);
  length.style.width = `${100 * probability}%`;
  item.append(name, length, percent(probability));
  return item;
}

const percent = (probability) => (probability < 0.0005 ? "<0.1 %" : `${(100 * probability).toFixed(1)} %`);

// A token as something that can be seen.
function visible(id) {
  const text = tokenizer.decode([id]);
  if (text.includes("\ufffd")) return Array.from(tokenizer.pieces[id], (byte) => byte.toString(16).padStart(2, "0")).join(" ");
  return text.replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/ /g, "␣").replace(/[\p{C}]/gu, "·");
}

// One button with a map for each head: a column for each layer.
function makeMaps() {
  const { n_layer, n_head } = model.config;
  byId("maps").style.gridTemplateColumns = `repeat(${Math.max(n_layer, 5)}, minmax(0, 1fr))`;
  for (let index = 0; index < n_layer * n_head; index++) {
    const [button, canvas] = ["button", "canvas"].map((tag) => document.createElement(tag));
    const own = { layer: Math.floor(index / n_head), number: index % n_head };
    button.setAttribute("aria-label", `Layer ${own.layer + 1}, head ${own.number + 1}`);
    button.style.gridArea = `${own.number + 1} / ${own.layer + 1}`;
    button.append(Object.assign(canvas, { width: MAPPED, height: MAPPED }));
    button.addEventListener("click", () => {
      head = own;
      document.querySelector("[value=attention]").checked = true;
      paint();
      inspect(chosen ?? (reader.ids.length ? reader.ids.length - 1 : null));
    });
    byId("maps").append(button);
  }
}

// The attention of each head from and to the last characters before the chosen one, or those of the whole text.
function drawMaps() {
  byId("looked").textContent = `Layer ${head.layer + 1}, head ${head.number + 1}`;
  const end = chosen ?? reader.ids.length, from = Math.max(0, end - MAPPED), { n_head } = model.config;
  const color = getComputedStyle(document.documentElement).getPropertyValue("--look").trim().split(" ").map(Number);
  Array.from(byId("maps").children).forEach((button, index) => {
    const own = { layer: Math.floor(index / n_head), number: index % n_head };
    button.setAttribute("aria-pressed", String(own.layer === head.layer && own.number === head.number));
    const context = button.firstChild.getContext("2d"), image = context.createImageData(MAPPED, MAPPED);
    for (let place = from; place < end; place++) {
      const row = steps[place]?.attention ? headRow(steps[place], own) : [];
      for (let other = from; other <= place; other++) {
        const weight = row[other - steps[place]?.start] || 0, pixel = (place - from) * MAPPED + other - from;
        image.data.set([...color, 255 * Math.sqrt(weight)], 4 * pixel);
      }
    }
    context.putImageData(image, 0, 0);
  });
}

// Listening
function placeOf(event) {
  const span = event.target.closest("#text span");
  return span && first + Array.prototype.indexOf.call(textBox.children, span);
}

function useKey(event) {
  const last = reader.ids.length - 1, moves = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity };
  if (event.key in moves && last >= 0) inspect(Math.min(last, Math.max(first, (chosen ?? last + 1) + moves[event.key])), true);
  else if (event.key === "Enter" && chosen !== null) goOn(chosen);
  else return;
  event.preventDefault();
  textBox.children[chosen - first]?.scrollIntoView({ block: "nearest" });
}

function listen() {
  byId("controls").addEventListener("submit", (event) => (event.preventDefault(), start()));
  byId("stop").addEventListener("click", stop);
  byId("undo").addEventListener("click", undo);
  byId("tints").addEventListener("change", paint);
  document.addEventListener("keydown", (event) => event.key === "Escape" && stop());
  byId("prompt").addEventListener("keydown", (event) => event.key === "Enter" && (event.ctrlKey || event.metaKey) && start());
  textBox.addEventListener("keydown", useKey);
  textBox.addEventListener("scroll", () => (following = textBox.scrollHeight - textBox.scrollTop < textBox.clientHeight + 60));
  textBox.addEventListener("pointermove", (event) => {
    const place = placeOf(event);
    if (event.pointerType === "mouse" && place !== null && place !== chosen) inspect(place);
  });
  textBox.addEventListener("click", (event) => {
    const place = placeOf(event);
    if (place !== null) (event.pointerType === "mouse" || place === chosen ? goOn : inspect)(place); // a finger chooses first
  });
  byId("controls").addEventListener("input", tell);
}

// Write the values of the sliders next to them.
function tell() {
  const speed = SPEEDS[byId("speed").valueAsNumber];
  document.querySelector("[for=temperature]").value = byId("temperature").valueAsNumber.toFixed(2);
  document.querySelector("[for=speed]").value = speed < Infinity ? `${speed} a second` : "no limit";
}

makeMaps();
listen();
tell();
drawMaps();
if (data.text) openText();
