// Cards of the world's effects. Clips are loaded and played while they are in sight.

import { $, calm, make, place } from "./dom.js";

const AT_ONCE = 12;

export class Gallery {
  #shown = AT_ONCE;
  #still = calm();
  #cards;

  /** `chosen(effect)` is called when a card is. */
  constructor(effects, chosen) {
    this.#cards = mixed(effects).map((effect) => {
      const video = make("video", { muted: true, loop: true, playsInline: true, preload: "none", tabIndex: -1 });
      video.dataset.clip = place(effect.clip);
      video.setAttribute("aria-hidden", "true");
      const card = make("button", { type: "button", className: "card" }, video,
        make("span", { className: "title", textContent: effect.title }),
        make("span", { className: "prompt", textContent: effect.prompt }));
      if (!effect.known) {
        card.append(make("span", { className: "tag new", textContent: "not in training" }));
      }
      card.addEventListener("click", () => chosen(effect));
      return { card, video, text: `${effect.title} ${effect.prompt} ${effect.category}`.toLowerCase(), seen: false };
    });
    this.#watch();
    $("find").addEventListener("input", () => { this.#shown = AT_ONCE; this.#list(); });
    $("more").addEventListener("click", () => this.#more());
    $("still").addEventListener("click", () => this.#pause(!this.#still));
    this.#pause(this.#still);
    this.#list();
    $("gallery").hidden = false;
  }

  #watch() {
    const of = new Map(this.#cards.map((entry) => [entry.card, entry]));
    const observer = new IntersectionObserver((changes) => {
      for (const change of changes) {
        const entry = of.get(change.target);
        entry.seen = change.isIntersecting;
        this.#play(entry);
      }
    }, { rootMargin: "100px" });
    for (const { card } of this.#cards) observer.observe(card);
  }

  #play({ video, seen }) {
    if (seen && !video.src) {
      video.preload = "auto";
      video.src = video.dataset.clip;
    }
    if (seen && !this.#still) video.play().catch(() => {});
    else video.pause();
  }

  #pause(still) {
    this.#still = still;
    $("still").textContent = still ? "Play clips" : "Pause clips";
    for (const entry of this.#cards) this.#play(entry);
  }

  #list() {
    const words = $("find").value.toLowerCase().split(/\s+/).filter(Boolean);
    const found = this.#cards.filter(({ text }) => words.every((word) => text.includes(word)));
    $("cards").replaceChildren(...found.slice(0, this.#shown).map(({ card }) => card));
    $("more").hidden = found.length <= this.#shown;
    $("none").hidden = found.length > 0;
  }

  #more() {
    const first = this.#shown;
    this.#shown += 2 * AT_ONCE;
    this.#list();
    $("cards").children[first]?.focus();
  }
}

/** One of each category in turn. */
function mixed(effects) {
  const piles = new Map();
  for (const effect of effects) piles.set(effect.category, [...(piles.get(effect.category) ?? []), effect]);
  const longest = Math.max(0, ...[...piles.values()].map((pile) => pile.length));
  const turns = Array.from({ length: longest }, (_, turn) => [...piles.values()].map((pile) => pile[turn]));
  return turns.flat().filter(Boolean);
}
