// Text to ids and back, as gpt/tokenizer.py and gpt/interop/bpe.py do it.
"use strict";

const GPT2_WORDS = /'(?:s|t|re|ve|m|ll|d)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+/gu;

class Tokenizer {
  // pieces are strings of which each character is a byte, merges are pairs of ids with the id that they make.
  constructor({ kind, pieces, merges }) {
    this.kind = kind;
    this.pieces = pieces.map((piece) => Uint8Array.from(piece, (char) => char.charCodeAt(0)));
    this.ids = new Map(pieces.map((piece, id) => [piece, id]));
    this.merges = new Map((merges ?? []).map(([left, right, merged], rank) => [`${left} ${right}`, { rank, merged }]));
    this.words = new Map(); // those that have been encoded
  }

  // Throws an Error that names the characters that the model does not know.
  encode(text) {
    if (this.kind === "bpe") return (text.match(GPT2_WORDS) ?? []).flatMap((word) => this.encodeWord(word));
    if (this.kind === "byte") return Array.from(new TextEncoder().encode(text));
    const unknown = new Set(), ids = [], encoder = new TextEncoder(), known = new Map();
    for (const char of text) {
      if (!known.has(char)) known.set(char, this.ids.get(String.fromCharCode(...encoder.encode(char))));
      const id = known.get(char);
      if (id === undefined) unknown.add(char);
      else ids.push(id);
    }
    if (unknown.size) {
      const named = [...unknown].slice(0, 10).map((char) => `“${char}”`).join(" ") + (unknown.size > 10 ? " …" : "");
      throw new Error(`${named} not among the ${this.pieces.length} characters that the model knows. Please leave them out.`);
    }
    return ids;
  }

  // Joins the pair that comes first in `merges` until none is left.
  encodeWord(word) {
    if (this.words.has(word)) return this.words.get(word);
    const ids = Array.from(new TextEncoder().encode(word), (byte) => this.ids.get(String.fromCharCode(byte)));
    for (;;) {
      let best = null, place = -1;
      for (let i = 0; i + 1 < ids.length; i++) {
        const merge = this.merges.get(`${ids[i]} ${ids[i + 1]}`);
        if (merge && (!best || merge.rank < best.rank)) [best, place] = [merge, i];
      }
      if (!best) break;
      ids.splice(place, 2, best.merged);
    }
    this.words.set(word, ids);
    return ids;
  }

  decode(ids) {
    const decoder = new TextDecoder("utf-8", { ignoreBOM: true }); // an id may be a part of a character
    return ids.map((id) => decoder.decode(this.pieces[id], { stream: true })).join("") + decoder.decode();
  }
}
