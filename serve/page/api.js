// The public API, as any client calls it: a key in a header, errors in one envelope, events of a video under way.

import { place, sleep } from "./dom.js";

const KEY = "p2e-api-key";
const FIRST_EVENT_S = 5; // some proxies hold a stream back; the video is asked for again and again then
const LOST_S = 30; // how long a server may be away before a video is given up

/** What the API says is wrong; `code` is its word for it, `retryAfter` seconds. */
export class ApiError extends Error {
  constructor(status, message, code, param, retryAfter) {
    super(message);
    Object.assign(this, { status, code, param, retryAfter });
  }
}

/** The server cannot be reached. */
export class Unreachable extends Error {
  constructor() {
    super("The server cannot be reached. Check the connection, then try again.");
  }
}

export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

let ask = async () => false;
/** Sets who asks for a key: (message) -> promise of whether there is a new one. */
export const onUnauthorised = (asker) => { ask = asker; };

let asking = null;

/** A call; a key is asked for where one is missing, and the call is made again. */
export async function call(method, path, { json, form, signal, headers = {} } = {}) {
  for (;;) {
    const sent = { ...headers };
    const shown = key.get();
    if (shown) sent.authorization = `Bearer ${shown}`;
    if (json !== undefined) sent["content-type"] = "application/json";
    const body = json !== undefined ? JSON.stringify(json) : form;
    let response;
    try {
      response = await fetch(place(path), { method, body, signal, headers: sent, credentials: "omit" });
    } catch (error) {
      throw signal?.aborted ? error : new Unreachable();
    }
    if (response.ok) return response;
    const error = await errorOf(response);
    if (error.status !== 401) throw error;
    if (key.get() !== shown) continue; // another call has asked meanwhile
    asking ??= ask(error.message).finally(() => { asking = null; });
    if (!(await asking)) throw error;
  }
}

async function errorOf(response) {
  const after = Number.parseInt(response.headers.get("retry-after") ?? "", 10);
  const retryAfter = Number.isFinite(after) ? Math.max(1, after) : undefined;
  let found = {};
  try {
    found = (await response.json()).error ?? {};
  } catch { /* a proxy's answer, not the API's */ }
  const message = found.message || `The server answered ${response.status} ${response.statusText}`.trim();
  return new ApiError(response.status, message, found.code, found.param, retryAfter);
}

/** A call that waits and is made again where the API says when; `waiting(error, seconds)` is told of each second. */
export async function patient(method, path, { waiting, ...options }) {
  let lost = 0;
  for (;;) {
    try {
      return await call(method, path, options);
    } catch (error) {
      const again = (error.status === 429 || error.status === 503) && error.retryAfter;
      if (error instanceof Unreachable && ++lost < 3) {
        await sleep(lost, options.signal);
      } else if (again) {
        for (let left = error.retryAfter; left > 0; left--) {
          waiting?.(error, left);
          await sleep(1, options.signal);
        }
        waiting?.(null, 0);
      } else {
        throw error;
      }
    }
  }
}

/** Calls `changed(video)` until the video has ended -> the ended video. */
export async function watch(id, changed) {
  let lostSince = null;
  let streams = true;
  for (;;) {
    try {
      const last = streams ? await events(id, changed) : await read(id, changed);
      lostSince = null;
      if (last === null) streams = false;
      else if (ended(last)) return last;
    } catch (error) {
      const away = error instanceof Unreachable || error.status >= 500 || error.status === 408 || error.status === 429;
      if (!away) throw error;
      streams = false;
      lostSince ??= Date.now();
      if (Date.now() - lostSince > 1000 * LOST_S) throw error;
    }
    if (!streams) await sleep(1);
  }
}

export const ended = (video) => !["queued", "in_progress"].includes(video.status);

async function read(id, changed) {
  const video = await (await call("GET", `v1/videos/${id}`)).json();
  changed(video);
  return video;
}

/** The last event of a stream; null where none came. */
async function events(id, changed) {
  const stop = new AbortController();
  const timer = setTimeout(() => stop.abort(), 1000 * FIRST_EVENT_S);
  let last = null;
  try {
    const response = await call("GET", `v1/videos/${id}/events`, { signal: stop.signal });
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let text = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return last;
      clearTimeout(timer);
      const parts = (text + value).split("\n\n");
      text = parts.pop();
      for (const part of parts) {
        const data = part.split("\n").filter((line) => line.startsWith("data:")).map((line) => line.slice(5)).join("\n");
        if (!data) continue;
        last = JSON.parse(data);
        changed(last);
      }
    }
  } catch (error) {
    if (error instanceof ApiError || error instanceof Unreachable) throw error;
    return null; // it broke off, or was held back
  } finally {
    clearTimeout(timer);
  }
}
