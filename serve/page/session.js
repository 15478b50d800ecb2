// The effects that were made since the page was opened, as chips under the fields of the form.

import { $, make } from "./dom.js";

const BOXES = { words: "chips", other: "other-chips" }; // by the field that they fill

export const percent = (share) => `${Math.round(100 * share)}%`;

const short = (text) => (text.length > 22 ? `${text.slice(0, 20).trim()}…` : text);

export class Session {
  #made = new Map(); // id -> {words, other, mix}; other is null where nothing was blended

  /** `chosen({words, other, mix}, field)` is called when a chip is. */
  constructor(chosen) {
    this.chosen = chosen;
  }

  remember(effect, { words, other, mix }) {
    this.#made.delete(effect.id);
    this.#made.set(effect.id, { words, other, mix }); // now the last one
    for (const [field, name] of Object.entries(BOXES)) {
      const entries = [...this.#made.values()].reverse().filter((entry) => field === "words" || entry.other === null);
      $(name).replaceChildren(...entries.map((entry) => this.#chip(entry, field)));
      $(name).hidden = entries.length === 0;
    }
  }

  #chip(entry, field) {
    const said = (cut) => (entry.other === null ? entry.words
      : `${cut(entry.words)} + ${cut(entry.other)} (${percent(entry.mix)})`);
    const button = make("button", { type: "button", textContent: said(short), title: said(String) });
    button.addEventListener("click", () => this.chosen(entry, field));
    return button;
  }
}
