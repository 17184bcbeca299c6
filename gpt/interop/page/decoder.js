// The transformer of gpt/model.py, part by part, for one position at a time.
//
// Shapes: T positions, C n_embd, H heads, D head size (C / H), V vocabulary, S positions that have been read.
// Activations are Float32Arrays. A matrix is stored as PyTorch stores it: one row after another, (outputs, inputs).

const EPS = 1e-5; // of all norms

// Numbers of two bytes each (IEEE 754 binary16), as base64, to a Float32Array.
function fromFloat16(base64) {
  const bytes = Uint8Array.from(atob(base64), (char) => char.charCodeAt(0));
  const halves = new DataView(bytes.buffer);
  const scales = Array.from({ length: 31 }, (_, exponent) => 2 ** (exponent - 25)); // of the last of ten binary digits
  const numbers = new Float32Array(bytes.length / 2);
  for (let i = 0; i < numbers.length; i++) {
    const half = halves.getUint16(2 * i, true);
    const exponent = (half >> 10) & 31;
    const digits = exponent ? (half & 1023) + 1024 : half & 1023; // the first digit is hidden, except for the smallest
    numbers[i] = (half & 0x8000 ? -digits : digits) * scales[exponent || 1];
  }
  return numbers;
}

// weight (O, I) times x (I), plus bias (O) if there is one: (O). Four rows at a time, of which the last may be one row again.
function linear({ weight, bias }, x) {
  const I = x.length, O = weight.length / I, y = new Float32Array(O);
  for (let row = 0; row < O; row += 4) {
    const [a, b, c, d] = [0, 1, 2, 3].map((i) => Math.min(row + i, O - 1));
    let sumA = 0, sumB = 0, sumC = 0, sumD = 0;
    for (let i = 0; i < I; i++) {
      sumA += weight[a * I + i] * x[i];
      sumB += weight[b * I + i] * x[i];
      sumC += weight[c * I + i] * x[i];
      sumD += weight[d * I + i] * x[i];
    }
    y[a] = sumA, y[b] = sumB, y[c] = sumC, y[d] = sumD;
  }
  return bias ? add(y, bias) : y;
}

const add = (x, y) => x.map((value, i) => value + y[i]);

// LayerNorm or RMSNorm of x (C). A missing norm returns x.
function normalise({ weight, bias }, x, kind) {
  if (!weight) return x;
  const mean = kind === "layernorm" ? x.reduce((sum, value) => sum + value, 0) / x.length : 0;
  const variance = x.reduce((sum, value) => sum + (value - mean) ** 2, 0) / x.length;
  const scale = 1 / Math.sqrt(variance + EPS);
  return x.map((value, i) => (value - mean) * scale * weight[i] + (bias ? bias[i] : 0));
}

// Adds to x (C) a learned mixture of the inputs of the positions before it, and keeps x for the positions after it.
function convolve({ weight }, x, inputs, position) {
  if (!weight) return x;
  const C = x.length, width = weight.length / C;
  inputs.set(x, position * C);
  const y = x.slice();
  for (let step = Math.max(0, width - position); step < width; step++) {
    const earlier = (position - width + step) * C;
    for (let i = 0; i < C; i++) y[i] += inputs[earlier + i] * weight[step * C + i];
  }
  return y;
}

// Turns the pairs (x_i, x_{i + D/2}) of a query or key x (D) by angles that grow with its position.
function rotate(x, position) {
  const D = x.length, half = D / 2, y = new Float32Array(D);
  for (let i = 0; i < half; i++) {
    const angle = Math.fround(position * Math.fround(10000 ** Math.fround((-2 * i) / D)));
    const cos = Math.cos(angle), sin = Math.sin(angle);
    y[i] = x[i] * cos - x[i + half] * sin;
    y[i + half] = x[i + half] * cos + x[i] * sin;
  }
  return y;
}

const ACTIVATIONS = {
  gelu: (x) => (x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x * x * x)))) / 2,
  relu: (x) => Math.max(x, 0),
  relu2: (x) => Math.max(x, 0) ** 2,
};

class GPT {
  // config has the fields of ModelConfig, tensors are Float32Arrays by the names that they have in PyTorch.
  constructor(config, tensors) {
    Object.assign(this, { config, tensors });
    const part = (name) => ({ weight: tensors[name + ".weight"], bias: tensors[name + ".bias"] });
    this.blocks = Array.from({ length: config.n_layer }, (_, layer) => {
      const named = (name) => part(`blocks.${layer}.${name}`);
      return {
        norm1: named("norm1"), conv1: named("attn.conv"), qkv: named("attn.qkv"), qkNorm: named("attn.qk_norm"),
        proj: named("attn.proj"), norm2: named("norm2"), conv2: named("mlp.conv"), fc: named("mlp.fc"), out: named("mlp.proj"),
      };
    });
    this.norm = part("norm");
    this.head = { weight: tensors["head.weight"] ?? tensors["tokens.weight"] }; // a tied head is the embedding
  }

  // Room for the keys, values and inputs of convolutions of context_length positions, none of which has been read.
  emptyCache() {
    const { context_length: T, n_embd: C } = this.config;
    const room = () => new Float32Array(T * C);
    return { length: 0, layers: this.blocks.map(() => ({ keys: room(), values: room(), conv1: room(), conv2: room() })) };
  }

  // Reads one token at the position after those in the cache.
  // Returns the logits (V), and for each layer the attention weights (H, S), one head after another.
  read(id, cache) {
    const { n_embd: C, norm, norm_position } = this.config, position = cache.length++;
    let x = this.tensors["tokens.weight"].slice(id * C, (id + 1) * C);
    const positions = this.tensors["positions.weight"];
    if (positions) x = add(x, positions.subarray(position * C, (position + 1) * C));
    const attention = [];
    this.blocks.forEach((block, layer) => {
      const past = cache.layers[layer];
      const attend = (input) => this.attend(block, convolve(block.conv1, input, past.conv1, position), past, position, attention);
      const feed = (input) => this.feedForward(block, convolve(block.conv2, input, past.conv2, position));
      if (norm_position === "pre") {
        x = add(x, attend(normalise(block.norm1, x, norm)));
        x = add(x, feed(normalise(block.norm2, x, norm)));
      } else {
        x = normalise(block.norm1, add(x, attend(x)), norm);
        x = normalise(block.norm2, add(x, feed(x)), norm);
      }
    });
    return { logits: linear(this.head, normalise(this.norm, x, norm)), attention };
  }

  // Multi-head attention from one position to all up to it. Appends its weights (H, S) to `attention`.
  attend({ qkv, qkNorm, proj }, x, { keys, values }, position, attention) {
    const { n_head: H, n_embd: C, norm, positions } = this.config, D = C / H, S = position + 1;
    const projected = linear(qkv, x); // (3C): queries, keys and values of all heads
    const prepare = (start) => {
      const normalised = normalise(qkNorm, projected.subarray(start, start + D), norm);
      return positions === "rotary" ? rotate(normalised, position) : normalised;
    };
    const mixed = new Float32Array(C), weights = new Float32Array(H * S);
    values.set(projected.subarray(2 * C), position * C);
    for (let head = 0; head < H; head++) {
      const offset = head * D, query = prepare(offset);
      keys.set(prepare(C + offset), position * C + offset);
      const row = weights.subarray(head * S, (head + 1) * S);
      let largest = -Infinity, total = 0;
      for (let s = 0; s < S; s++) {
        let score = 0;
        for (let i = 0, k = s * C + offset; i < D; i++) score += query[i] * keys[k + i];
        row[s] = score / Math.sqrt(D);
        if (row[s] > largest) largest = row[s];
      }
      for (let s = 0; s < S; s++) total += row[s] = Math.exp(row[s] - largest);
      for (let s = 0; s < S; s++) {
        const weight = (row[s] /= total);
        for (let i = 0, v = s * C + offset; i < D; i++) mixed[offset + i] += weight * values[v + i];
      }
    }
    attention.push(weights);
    return linear(proj, mixed);
  }

  feedForward({ fc, out }, x) {
    return linear(out, linear(fc, x).map(ACTIVATIONS[this.config.activation]));
  }
}

// A model with the text that it reads, as gpt.generate.CachedModel: when the context is full, it reads the later half of it again.
class CachedModel {
  constructor(model) {
    Object.assign(this, { model, ids: [], start: 0, cache: model.emptyCache() }); // `start`: where in ids the context begins
  }

  // Forgets all but the first `length` ids of the text.
  rewind(length) {
    this.ids = this.ids.slice(0, length);
    this.cache.length = Math.max(0, Math.min(this.cache.length, length - this.start));
  }

  // Reads the next ids one by one, and whatever was left unread before. After each it yields what GPT.read returns.
  *read(next) {
    const limit = this.model.config.context_length;
    this.ids = this.ids.concat(next);
    const unread = this.ids.length - this.start - this.cache.length;
    if (this.cache.length === 0) this.start = Math.max(0, this.ids.length - limit);
    else if (this.cache.length + unread > limit) {
      this.start = this.ids.length - Math.max(1, Math.floor(limit / 2));
      this.cache.length = 0;
    }
    while (this.start + this.cache.length < this.ids.length) {
      yield this.model.read(this.ids[this.start + this.cache.length], this.cache);
    }
  }
}

// A generator of numbers from 0 up to 1 for each place in a text (the mixing function of MurmurHash3 over a Weyl sequence).
function randomNumber(seed, take, place) {
  let state = 0;
  for (const part of [seed, take, place]) {
    state = (state ^ part) + 0x9e3779b9 | 0;
    state = Math.imul(state ^ (state >>> 16), 0x85ebca6b);
    state = Math.imul(state ^ (state >>> 13), 0xc2b2ae35);
    state ^= state >>> 16;
  }
  return (state >>> 0) / 2 ** 32;
}

// Probabilities (V) at a temperature above 0.
function softmax(logits, temperature = 1) {
  const largest = logits.reduce((a, b) => Math.max(a, b), -Infinity);
  const odds = Float64Array.from(logits, (logit) => Math.exp((logit - largest) / temperature));
  const total = odds.reduce((a, b) => a + b, 0);
  return odds.map((value) => value / total);
}

// Draws the next id as gpt.generate.sample_next does, with `random` from 0 up to 1. topK 0 means no limit.
function sampleNext(logits, { temperature, topK, topP }, random) {
  const order = Array.from(logits.keys()).sort((a, b) => logits[b] - logits[a] || a - b);
  if (temperature < 1e-6) return order[0];
  const probabilities = softmax(logits, temperature);
  const best = topK ? order.slice(0, topK) : order;
  const total = best.reduce((sum, id) => sum + probabilities[id], 0);
  let kept = 0, mass = 0;
  while (kept < best.length && (kept === 0 || mass < topP * total)) mass += probabilities[best[kept++]];
  let rest = random * mass;
  return best.slice(0, kept).find((id) => (rest -= probabilities[id]) < 0) ?? best[0];
}
