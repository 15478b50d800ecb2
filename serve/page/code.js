// What was just done, as commands and as a program that do the same.

import { place } from "./dom.js";

const shell = (text) => `'${String(text).replaceAll("'", "'\\''")}'`;
const python = (value) => JSON.stringify(value); // its strings and numbers are Python's too

/** The commands.
 *  @param did {effects: [{body, id}], videos: [{fields, file}], picture: {file, place}, keyed} */
export function curl(did) {
  const key = did.keyed ? ' \\\n  -H "Authorization: Bearer $P2E_API_KEY"' : "";
  const to = (path) => `curl -sS --fail-with-body ${shell(place(path))}${key}`;
  const of = (path) => `curl -sS --fail-with-body "${place("v1/videos")}/$video${path}"${key}`;
  const parts = did.effects.map(({ body, id }) =>
    `# ${id}: the same request has the same id\n` +
    `${to("v1/effects")} \\\n  -H 'Content-Type: application/json' \\\n  -d ${shell(JSON.stringify(body))} -w '\\n'`);
  const { id } = did.effects.at(-1);
  parts.push(`# its LoRA\n${to(`v1/effects/${id}/content`)} \\\n  -o effect.safetensors`);
  if (did.picture.place) parts.push(`curl -sS --fail-with-body ${shell(place(did.picture.place))} -o ${did.picture.file}`);
  else parts.push(`# ${did.picture.file} is the picture that you chose`);
  for (const { fields, file } of did.videos) {
    const texts = Object.entries(fields).map(([name, value]) => ` \\\n  --form-string ${shell(`${name}=${value}`)}`);
    parts.push(
      `# ${file}: a job; its events end when it does\n` +
      `video=$(${to("v1/videos")}${texts.join("")} \\\n  -F input_reference=@${did.picture.file} ` +
      `| sed -n 's/^{"id":"\\([^"]*\\)".*/\\1/p')\n` +
      `${of("/events")} -N\n` +
      `${of("/content")} \\\n  -o ${file}`);
  }
  return `${parts.join("\n\n")}\n`;
}

const NAMES = ["first", "second"]; // of the effects that are blended

/** The program; it takes what `curl` does. */
export function program(did) {
  const { picture } = did;
  const names = did.effects.length === 1 ? ["effect"] : [...NAMES, "effect"];
  const of = new Map(did.effects.map(({ id }, i) => [id, names[i]])); // of two equal effects, the later name
  const lines = did.effects.map(({ body }, i) => `${names[i]} = client.effects.create(${asked(body, of)})`);
  lines.push('client.effects.download(effect, "effect.safetensors")');
  const start = picture.place ? "picture" : python(picture.file);
  if (picture.place) lines.push(`picture = httpx.get(${python(place(picture.place))}).content`);
  for (const { fields: { prompt, ...fields }, file } of did.videos) {
    const options = Object.entries(fields).map(([name, value]) =>
      `, ${name}=${name === "effect_id" ? "effect.id" : Number(value)}`);
    lines.push(
      `video = client.videos.create(${start}, ${python(prompt)}${options.join("")})`,
      `client.videos.download(client.videos.wait(video), ${python(file)})`);
  }
  const about = did.keyed ? "  # the key is that in P2E_API_KEY" : "";
  const imports = `${picture.place ? "import httpx\n\n" : ""}from p2e.client import Client`;
  const note = picture.place ? "" : `# ${picture.file} is the picture that you chose\n`;
  const endpoint = place(".").replace(/\/$/, "");
  return `${imports}\n\n${note}with Client(${python(endpoint)}) as client:${about}\n    ${lines.join("\n    ")}\n`;
}

function asked({ prompt, blend }, of) {
  if (blend === undefined) return python(prompt);
  return `blend=[${blend.map(({ effect_id: id, weight }) => `(${of.get(id)}.id, ${weight})`).join(", ")}]`;
}
