// The picture to begin with: chosen, dropped, pasted, or one of the samples.

import { $, make, place } from "./dom.js";

const ENDINGS = { "image/jpeg": "jpg", "image/webp": "webp" };

export class Picture {
  #asked = 0;
  value = null;

  /** `changed(picture)`: {blob, file, url, place}; `place` is where a sample is fetched from, else null. */
  constructor(changed, failed) {
    Object.assign(this, { changed, failed });
    $("file").addEventListener("change", () => { this.#own($("file").files[0]); $("file").value = ""; });
    document.addEventListener("paste", (event) => this.#own(event.clipboardData?.files[0]));
    const drop = $("drop");
    const over = (on) => drop.classList.toggle("over", on);
    document.addEventListener("dragover", (event) => { event.preventDefault(); over(true); });
    document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) over(false); });
    document.addEventListener("drop", (event) => {
      event.preventDefault();
      over(false);
      this.#own(event.dataTransfer?.files[0]);
    });
    $("preview").addEventListener("error", () => { $("preview").hidden = true; });
  }

  #own(file) {
    if (!file) return;
    this.#asked++;
    for (const sample of document.getElementsByName("sample")) sample.checked = false;
    this.#set(file, file.name, null);
  }

  #set(blob, name, from) {
    if (this.value) URL.revokeObjectURL(this.value.url);
    const url = URL.createObjectURL(blob);
    this.value = { blob, file: `picture.${ENDINGS[blob.type] ?? "png"}`, url, place: from };
    $("preview").hidden = false;
    $("preview").src = url;
    $("preview").alt = name;
    $("picture-name").textContent = name;
    this.changed(this.value);
  }

  /** Takes a sample by its place, relative to the page. */
  async sample(from, title) {
    const turn = ++this.#asked;
    for (const sample of document.getElementsByName("sample")) sample.checked = sample.value === from;
    try {
      const response = await fetch(place(from));
      if (!response.ok) throw new Error(`The sample picture cannot be loaded: the server answered ${response.status}.`);
      const blob = await response.blob();
      if (turn === this.#asked) this.#set(blob, title, from);
    } catch (error) {
      if (turn === this.#asked) this.failed(error);
    }
  }

  /** Lists samples: [{place, title}]. */
  samples(found) {
    const radios = found.map(({ place: from, title }) => {
      const radio = make("input", { type: "radio", name: "sample", value: from, className: "unseen" });
      radio.addEventListener("change", () => this.sample(from, title));
      return make("label", { title }, radio, make("img", { src: place(from), alt: title, loading: "lazy" }));
    });
    $("samples").append(...radios);
    $("samples").hidden = radios.length === 0;
  }
}
