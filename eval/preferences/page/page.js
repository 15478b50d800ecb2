// Two clips side by side, without a name; one answer a pair, kept by the server before the next pair is shown.

const KEYS = { 1: "left", 2: "right", 3: "equal", 4: "bad", a: "left", b: "right" };
const find = (id) => document.getElementById(id);
const buttons = [...document.querySelectorAll("[data-choice]")];
const SIDES = ["left", "right"];
const videos = SIDES.map((side) => find(side).querySelector("video"));

const urls = []; // of the clips in memory
let choices = [];
let place = 0;
let shownAt = 0; // when both clips began to play; 0 until then
let busy = false;
let visit = 0; // a pair that arrives after the rater moved on is dropped

function say(words) {
  find("message").textContent = words;
  find("message").hidden = !words;
}

async function ask(path, options) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw new Error("The program in the terminal does not answer. Start it again and open its new address.");
  }
  if (!answer.ok) {
    const told = await answer.json().catch(() => ({}));
    throw new Error(told.error || `The program answers ${answer.status}.`);
  }
  return answer;
}

async function begin(video, url) {
  video.src = url;
  try {
    await video.play();
  } catch (error) {
    // Where a browser plays nothing unasked, the rater starts it.
    if (error.name !== "NotAllowedError") throw new Error("A clip cannot be played; go on with Next.");
  }
}

function replay() {
  for (const video of videos) {
    video.currentTime = 0;
    video.play().catch(() => {});
  }
}

function mark() {
  const done = choices.filter((choice) => choice !== null).length;
  const all = choices.length;
  find("progress").textContent = done === all ? `all ${all} answered, thank you` : `${place + 1} of ${all}, ${done} answered`;
  find("bar").max = all;
  find("bar").value = done;
  find("back").disabled = busy || place === 0;
  find("next").disabled = busy || place === all - 1;
  for (const button of buttons) {
    button.disabled = busy || !shownAt;
    button.setAttribute("aria-pressed", String(choices[place] === button.dataset.choice));
  }
}

async function show(number) {
  place = number;
  shownAt = 0;
  const now = ++visit;
  say("");
  find("prompt").textContent = "";
  for (const video of videos) {
    video.removeAttribute("src");
    video.load();
  }
  urls.splice(0).forEach((url) => URL.revokeObjectURL(url));
  find("start").querySelector("img").src = `pairs/${number}/image`;
  mark();
  try {
    const pair = await (await ask(`pairs/${number}`)).json();
    const blobs = await Promise.all(SIDES.map(async (side) => (await ask(`pairs/${number}/${side}`)).blob()));
    if (now !== visit) return;
    find("prompt").textContent = pair.prompt;
    urls.push(...blobs.map((blob) => URL.createObjectURL(blob)));
    await Promise.all(videos.map((video, side) => begin(video, urls[side])));
    if (now !== visit) return;
    shownAt = performance.now();
    replay();
  } catch (error) {
    if (now === visit) say(error.message);
  }
  mark();
}

async function answer(choice) {
  if (busy || !shownAt) return;
  busy = true;
  mark();
  const seconds = (performance.now() - shownAt) / 1000;
  try {
    const kept = await ask(`pairs/${place}`, {
      method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify({ choice, seconds }),
    });
    choices = (await kept.json()).choices;
  } catch (error) {
    say(`Not kept: ${error.message}`);
    busy = false;
    mark();
    return;
  }
  busy = false;
  const later = choices.indexOf(null, place + 1);
  const left = later >= 0 ? later : choices.indexOf(null);
  if (left >= 0) await show(left);
  else mark();
}

function move(step) {
  const number = place + step;
  if (!busy && number >= 0 && number < choices.length) show(number);
}

for (const button of buttons) {
  button.addEventListener("click", (event) => {
    if (event.detail) button.blur(); // or the next Enter would answer the next pair
    answer(button.dataset.choice);
  });
}
find("back").addEventListener("click", () => move(-1));
find("next").addEventListener("click", () => move(1));
find("replay").addEventListener("click", replay);
find("start").querySelector("img").addEventListener("error", () => { find("start").hidden = true; });
find("start").querySelector("img").addEventListener("load", () => { find("start").hidden = false; });

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  const choice = KEYS[event.key.toLowerCase()];
  if (choice) answer(choice);
  else if (event.key === "ArrowLeft" || event.key === "Backspace") move(-1);
  else if (event.key === "ArrowRight") move(1);
  else if (event.key === " ") replay();
  else return;
  event.preventDefault();
});
document.addEventListener("keyup", (event) => {
  if (event.key === " ") event.preventDefault(); // which would press a button in Firefox
});

try {
  choices = (await (await ask("session")).json()).choices;
  const first = choices.indexOf(null);
  await show(first < 0 ? 0 : first);
} catch (error) {
  say(error.message);
}
