// The form, what is made of it, and what is shown.

import { ApiError, call, key, patient } from "./api.js";
import { curl, program } from "./code.js";
import { $, calm, copy, save, show } from "./dom.js";
import { Gallery } from "./gallery.js";
import { openKey } from "./keys.js";
import { Picture } from "./picture.js";
import { Player } from "./player.js";
import { Session, percent } from "./session.js";
import { Slot, Stopped } from "./slot.js";

const FIRST_PICTURE = 4;
const PAUSE_MS = 500; // after the last move of a slider

class Complaint extends Error {}

const announce = (text) => { $("announce").textContent = text; };
const slots = { base: new Slot($("slot-base"), announce), effect: new Slot($("slot-effect"), announce) };
const player = new Player([slots.base.video, slots.effect.video], () => { $("pause").disabled = !player.any; });
const session = new Session(again);
const pictures = new Map(); // blob -> number, by which a video without an effect is kept
let shown = null; // what was made last: {wish, effects: [{body, id}], effect}
let asked = null; // an AbortController while an effect is being made
let counter = 0;

const picture = new Picture((chosen) => {
  pictures.set(chosen.blob, ++counter);
  for (const slot of Object.values(slots)) {
    slot.cancel("superseded");
    slot.picture(chosen.url);
  }
  leave();
}, complain);

/** The text of a field as one line: forms would change its line breaks, which the effect's id is made of. */
const line = (field) => $(field).value.trim().replace(/\s*\n\s*/g, " ");

/** What the form says. */
function wish() {
  const words = line("words");
  if (!words) throw new Complaint("Say first what should happen.");
  const other = $("blend-on").checked ? line("other") : null;
  if (other === "") throw new Complaint("Say what the second effect is, or do not blend.");
  if (!picture.value) throw new Complaint("Choose a picture first.");
  const seed = $("seed").value.trim();
  if (!/^\d+$/.test(seed) || !Number.isSafeInteger(Number(seed))) {
    throw new Complaint("The seed is a whole number from 0 to 9007199254740991.");
  }
  const scene = line("scene");
  return {
    words, other, mix: Number($("mix").value), scene, seed: Number(seed), picture: picture.value,
    prompt: scene || [words, other].filter(Boolean).join(" "),
  };
}

async function makeIt() {
  let wanted;
  try {
    wanted = wish();
  } catch (error) {
    return complain(error);
  }
  asked?.abort(new Stopped());
  slots.effect.cancel("superseded");
  const mine = (asked = new AbortController());
  complain(null);
  refresh();
  if (matchMedia("(max-width: 860px)").matches) {
    $("result").scrollIntoView({ behavior: calm() ? "auto" : "smooth" });
  }
  slots.effect.say("Making the effect");
  try {
    const done = await effectOf(wanted, mine.signal);
    if (asked !== mine) return;
    shown = { wish: wanted, ...done };
    render(true);
  } catch (error) {
    if (asked !== mine) return;
    slots.effect.say(error instanceof Stopped ? "Cancelled" : "");
    complain(error);
  } finally {
    if (asked === mine) asked = null;
    refresh();
  }
}

/** Has the effect made, or the two and their blend -> {effects: requests with their ids, effect}. */
async function effectOf({ words, other, mix }, signal) {
  const effects = [];
  const waiting = (error, left) => {
    if (error) complain(new Error(`${error.message}. Trying again in ${left} s.`), true);
    else complain(null);
  };
  async function post(body) {
    const effect = await (await patient("POST", "v1/effects", { json: body, signal, waiting })).json();
    effects.push({ body, id: effect.id });
    return effect;
  }
  let effect = await post({ prompt: words });
  session.remember(effect, { words, other: null });
  if (other !== null) {
    const second = await post({ prompt: other });
    session.remember(second, { words: other, other: null });
    const share = Math.round(100 * (1 - mix)) / 100;
    effect = await post({ blend: [{ effect_id: effect.id, weight: share }, { effect_id: second.id, weight: mix }] });
    session.remember(effect, { words, other, mix });
  }
  return { effects, effect };
}

const fieldsOf = ({ prompt, seed }) => ({ prompt, seed: String(seed) });
const withEffect = (now) => ({ ...fieldsOf(now.wish), effect_id: now.effect.id, strength: now.strength });

/** Renders what was made last; the video without the effect only where it may have changed. */
function render(both) {
  const now = shown;
  now.strength = $("strength").value;
  const base = fieldsOf(now.wish);
  const keep = JSON.stringify([pictures.get(now.wish.picture.blob), base]);
  const under = [slots.effect.render(withEffect(now), now.wish.picture)];
  if (both) under.push(slots.base.render(base, now.wish.picture, { keep, after: slots.effect.sent })); // that goes first
  for (const run of under) {
    run.catch(failed).finally(refresh);
  }
  tell();
  refresh();
}

function failed(error) {
  const shownThere = error instanceof Stopped || (error instanceof ApiError && error.status < 400);
  if (!shownThere) complain(error);
}

function stop(reason) {
  asked?.abort(new Stopped());
  if (reason === "superseded") asked = null;
  for (const slot of Object.values(slots)) slot.cancel(reason);
}

/** The picture has changed: what was made before is not of it. */
function leave() {
  stop("superseded");
  shown = null;
  $("code").hidden = true;
  refresh();
}

function complain(error, waits = false) {
  if (error instanceof Stopped) error = null;
  const hint = error instanceof ApiError && error.param ? ` (${error.param})` : "";
  const text = error ? error.message + (hint && !error.message.includes(error.param) ? hint : "") : "";
  $("message").classList.toggle("wait", waits);
  show($("message"), text);
}

function refresh() {
  const busy = asked !== null || slots.base.busy || slots.effect.busy;
  $("cancel").hidden = !busy;
  $("make").textContent = busy ? "Make another" : "Make it";
  $("save-lora").disabled = shown === null;
  $("save-video").disabled = slots.effect.done === null;
  $("pause").disabled = !player.any;
  const { lora, id } = shown?.effect ?? {};
  show($("facts"), lora ? `The LoRA file: rank ${lora.rank}, ${size(lora.bytes)}, at strength 1. ${id}` : "");
}

const size = (bytes) => (bytes < 1e6 ? `${(bytes / 1e3).toFixed(1)} kB` : `${(bytes / 1e6).toFixed(1)} MB`);

/** Fills a field, and the blend, with what was made before. */
function again(entry, field) {
  $(field).value = entry.words;
  if (field === "words") {
    if (entry.other !== null) {
      $("other").value = entry.other;
      $("mix").value = entry.mix;
    }
    blending(entry.other !== null);
  }
  $(field).focus();
}

function blending(on) {
  $("blend-on").checked = on;
  $("blend").hidden = !on;
  $("blend-on").setAttribute("aria-expanded", String(on));
  mixed();
}

function mixed() {
  const mix = Number($("mix").value);
  $("mix-shown").textContent = `${percent(1 - mix)} of the first, ${percent(mix)} of the second`;
}

let language = curl;
function tell() {
  const { wish: said, effects } = shown;
  $("code-text").textContent = language({
    effects, picture: said.picture, keyed: key.get() !== "",
    videos: [{ fields: withEffect(shown), file: "effect.mp4" }, { fields: fieldsOf(said), file: "base.mp4" }],
  });
  $("code").hidden = false;
}

function speak(chosen) {
  language = chosen;
  $("code-curl").setAttribute("aria-pressed", String(chosen === curl));
  $("code-python").setAttribute("aria-pressed", String(chosen === program));
  if (shown) tell();
}

async function saveLora() {
  try {
    const { id } = shown.effect;
    save(await (await call("GET", `v1/effects/${id}/content`)).blob(), `${id}.safetensors`);
  } catch (error) {
    complain(error);
  }
}

async function copyCode() {
  try {
    await copy($("code-text").textContent);
    $("copy").textContent = "Copied";
    setTimeout(() => { $("copy").textContent = "Copy"; }, 1500);
  } catch (error) {
    complain(error);
  }
}

/** Calls `act` once a slider has come to rest. */
function settled(slider, act) {
  let timer;
  slider.addEventListener("change", () => {
    clearTimeout(timer);
    timer = setTimeout(act, PAUSE_MS);
  });
}

function take(effect) {
  $("words").value = effect.prompt;
  blending(false);
  picture.sample(effect.picture.place, effect.picture.title);
  $("form").scrollIntoView({ behavior: calm() ? "auto" : "smooth" });
  $("words").focus({ preventScroll: true });
}

async function world() {
  const found = await (await call("GET", "gallery.json")).json();
  picture.samples(found.pictures);
  const first = found.pictures[FIRST_PICTURE];
  if (first && !picture.value) picture.sample(first.place, first.title);
  if (found.effects.length) new Gallery(found.effects, take);
}

async function model() {
  const found = await (await call("GET", "v1/models")).json();
  show($("model"), found.data.map(({ id }) => id).join(", "));
}

$("form").addEventListener("submit", (event) => { event.preventDefault(); makeIt(); });
$("words").addEventListener("keydown", (event) => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) makeIt(); });
$("cancel").addEventListener("click", () => { stop("cancelled"); refresh(); });
$("blend-on").addEventListener("change", () => blending($("blend-on").checked));
$("mix").addEventListener("input", mixed);
settled($("mix"), () => { if (!asked && shown?.wish.other && shown.wish.mix !== Number($("mix").value)) makeIt(); });
$("strength").addEventListener("input", () => { $("strength-shown").textContent = Number($("strength").value); });
settled($("strength"), () => { if (!asked && shown && shown.strength !== $("strength").value) render(false); });
$("dice").addEventListener("click", () => { $("seed").value = crypto.getRandomValues(new Uint32Array(1))[0]; });
$("pause").addEventListener("click", () => {
  player.pause(!player.paused);
  $("pause").textContent = player.paused ? "Play" : "Pause";
});
$("save-lora").addEventListener("click", saveLora);
$("save-video").addEventListener("click", () => save(slots.effect.done.blob, `${slots.effect.done.video.id}.mp4`));
$("code-curl").addEventListener("click", () => speak(curl));
$("code-python").addEventListener("click", () => speak(program));
$("copy").addEventListener("click", copyCode);
$("key-open").addEventListener("click", () => openKey(""));
$("pause").textContent = player.paused ? "Play" : "Pause";
blending($("blend-on").checked);
$("strength-shown").textContent = Number($("strength").value);
model().catch(() => {});
world().catch(complain);
