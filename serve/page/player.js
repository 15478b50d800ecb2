// Videos that play in step: each loop begins when all have ended.

import { calm } from "./dom.js";

export class Player {
  #videos;
  paused = calm();

  /** `changed` is called when there is something to play, or no longer. */
  constructor(videos, changed) {
    this.#videos = videos;
    this.changed = changed;
    for (const video of videos) {
      video.addEventListener("ended", () => this.#again());
      video.addEventListener("loadeddata", () => this.restart());
    }
  }

  get #ready() {
    return this.#videos.filter((video) => !video.hidden && video.readyState >= 1); // less than 2 while it goes back
  }

  get any() {
    return this.#ready.length > 0;
  }

  #again() {
    if (this.#ready.every((video) => video.ended)) this.restart();
  }

  restart() {
    for (const video of this.#ready) {
      video.currentTime = 0;
      if (!this.paused) video.play().catch(() => {}); // a browser may forbid it until the page is touched
    }
    this.changed();
  }

  pause(paused) {
    this.paused = paused;
    if (!paused) return this.restart();
    for (const video of this.#ready) video.pause();
  }
}
