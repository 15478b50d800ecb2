// One of the two screens: the picture, the progress of its video, then the video.

import { ApiError, call, ended, patient, watch } from "./api.js";

const KEPT = 24; // videos without an effect that are kept for further effects on the same picture

/** Somebody has pressed Cancel, or asked for something else. */
export class Stopped extends Error {}

export class Slot {
  #current = null;
  #url = null;

  constructor(figure, announce) {
    [this.image, this.video] = figure.querySelectorAll("img, video");
    [this.figure, this.announce] = [figure, announce];
    this.title = figure.querySelector("figcaption").textContent;
    this.progress = figure.querySelector("progress");
    this.status = figure.querySelector(".status");
    this.done = null;
    this.kept = new Map();
  }

  picture(url) {
    this.image.src = url;
    this.image.hidden = false;
    this.video.hidden = true;
    this.done = null;
    this.say("");
  }

  say(text, bad = false) {
    this.status.textContent = text;
    this.status.classList.toggle("bad", bad);
  }

  #busy(on) {
    this.figure.classList.toggle("busy", on);
    this.progress.hidden = !on;
    if (!on) this.progress.value = 0;
  }

  get busy() {
    return this.#current !== null;
  }

  /** Asks for a video and shows it -> promise of {video, blob}. Another one under way is cancelled.
   *  @param fields of the form; @param picture its blob; @param keep a name under which the video is kept, if any
   *  @param after what is waited for before it is asked for */
  render(fields, picture, { keep, after } = {}) {
    if (keep && this.#current?.keep === keep && !this.#current.stopped) return this.#current.result;
    this.cancel("superseded");
    const run = { keep, after, id: null, stopped: false, waiting: false, abort: new AbortController() };
    this.sent = new Promise((resolve) => { run.sent = resolve; });
    this.#current = run;
    this.done = null;
    run.result = this.#run(run, fields, picture);
    return run.result;
  }

  async #run(run, fields, picture) {
    const { keep } = run;
    try {
      const found = this.kept.get(keep) ?? await this.#made(run, fields, picture);
      if (run.stopped) throw new Stopped();
      if (keep) this.#keep(keep, found);
      this.#play(found);
      return found;
    } catch (error) {
      if (this.#current === run) this.say(error instanceof Stopped ? "Cancelled" : error.message, !(error instanceof Stopped));
      throw error;
    } finally {
      run.sent();
      if (this.#current === run) {
        this.#current = null;
        this.#busy(false);
      }
    }
  }

  async #made(run, fields, picture) {
    const mine = (text) => { if (this.#current === run) this.say(text); };
    this.#busy(true);
    this.progress.removeAttribute("value");
    mine("Sending");
    await run.after;
    if (run.stopped) throw new Stopped();
    const form = new FormData();
    for (const [name, value] of Object.entries(fields)) form.append(name, value);
    form.append("input_reference", picture.blob, picture.file);
    const since = performance.now();
    const headers = { "idempotency-key": token() };
    const waiting = (error, left) => {
      run.waiting = error !== null;
      mine(error ? `${error.message}. Trying again in ${left} s.` : "Sending");
    };
    let video;
    try { // sent to its end even where it is no longer wanted: only then it has a name to cancel it by
      const sending = patient("POST", "v1/videos", { form, headers, waiting, signal: run.abort.signal });
      video = await (await sending).json();
    } catch (error) {
      throw run.stopped ? new Stopped() : error;
    }
    run.id = video.id;
    run.sent();
    if (run.stopped) this.#stop(run);
    video = await watch(video.id, (found) => { if (this.#current === run) this.#shown(found, run); });
    if (video.status === "cancelled") throw new Stopped();
    if (video.status === "failed") throw new ApiError(200, video.error.message, video.error.code);
    mine("Fetching");
    const blob = await (await call("GET", `v1/videos/${video.id}/content`)).blob();
    return { video, blob, seconds: (performance.now() - since) / 1000 };
  }

  #shown(video, run) {
    const [width, height] = video.size.split("x");
    this.figure.parentElement.style.setProperty("--ratio", `${width} / ${height}`);
    if (ended(video)) return;
    const queued = video.status === "queued";
    if (queued) this.progress.removeAttribute("value");
    else this.progress.value = video.progress;
    const text = run.stopped ? "Cancelling" : queued ? "Queued" : `Rendering, ${video.progress}%`;
    if (queued || run.stopped) this.announce(`${this.title}: ${text}`);
    this.say(text);
  }

  #keep(name, found) {
    this.kept.set(name, found);
    if (this.kept.size > KEPT) this.kept.delete(this.kept.keys().next().value);
  }

  #play(found) {
    if (this.#url) URL.revokeObjectURL(this.#url);
    this.#url = URL.createObjectURL(found.blob);
    this.video.src = this.#url;
    this.video.hidden = false;
    this.image.hidden = true;
    this.done = found;
    const text = `Done in ${found.seconds.toFixed(found.seconds < 10 ? 1 : 0)} s`;
    this.say(text);
    this.announce(`${this.title}: ${text}`);
  }

  cancel(reason = "cancelled") {
    const run = this.#current;
    if (!run || run.stopped) return;
    run.stopped = true;
    if (reason === "superseded") this.#current = null;
    else this.say("Cancelling");
    if (run.id) this.#stop(run);
    else if (run.waiting) run.abort.abort(new Stopped());
  }

  #stop(run) {
    call("POST", `v1/videos/${run.id}/cancel`).catch((error) => {
      if (error.status !== 409) this.say(error.message, true); // 409: it has ended meanwhile
    });
  }
}

/** 128 random bits; crypto.randomUUID is there on HTTPS and localhost alone. */
function token() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
