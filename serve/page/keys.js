// The API key: asked for when the API wants one, or behind its button.

import { key, onUnauthorised } from "./api.js";
import { $, show } from "./dom.js";

let settle = () => {};

/** Asks for a key, saying why -> whether there is a new one. */
export function openKey(why) {
  show($("key-why"), why);
  $("key").value = "";
  $("key-forget").hidden = key.get() === "";
  settle(false); // one that waits already, if any
  if (!$("key-dialog").open) $("key-dialog").showModal();
  return new Promise((resolve) => { settle = resolve; });
}

function close(given) {
  $("key-dialog").close();
  settle(given);
}

$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const given = $("key").value.trim();
  if (!/^[\x21-\x7e]{1,256}$/.test(given)) return show($("key-why"), "That is no API key: it has up to 256 characters, and no spaces.");
  key.set(given);
  close(true);
});
$("key-close").addEventListener("click", () => close(false));
$("key-dialog").addEventListener("close", () => settle(false));
$("key-forget").addEventListener("click", () => { key.set(""); close(false); });
onUnauthorised(openKey);
