// The log panel: one streaming request, lines added once a frame.

import { byId, make } from "./dom.js";
import { plain } from "./format.js";

const MOST_LINES = 2000;
const FIRST_LINES = 300;
const box = byId("log");
const chosen = byId("log-service");
const filter = byId("log-filter");
const follow = byId("log-follow");

let waiting = [];
let request = null;
let lastSeq = 0;
let pause = 1000;

/** Offer the services; keep what is chosen. */
export function offer(names) {
  const known = [...chosen.options].slice(1).map((option) => option.value);
  if (JSON.stringify(known) === JSON.stringify(names)) return;
  const current = chosen.value;
  chosen.replaceChildren(make("option", { value: "" }, "all"), ...names.map((name) => make("option", { value: name }, name)));
  chosen.value = names.includes(current) ? current : "";
}

/** Show one service's lines. */
export function show(name) {
  chosen.value = name;
  byId("logs").scrollIntoView({ behavior: "smooth" });
  box.focus({ preventScroll: true });
  start();
}

/** Begin anew: another service was chosen, or the supervisor is another one. */
export function start() {
  box.replaceChildren();
  waiting = [];
  lastSeq = 0;
  connect();
}

async function connect() {
  request?.abort();
  const mine = new AbortController();
  request = mine;
  const query = new URLSearchParams({ limit: FIRST_LINES, follow: 1 });
  if (chosen.value) query.set("service", chosen.value);
  try {
    const response = await fetch(`/v1/logs?${query}`, { signal: mine.signal, cache: "no-store" });
    if (!response.ok) throw new Error(`HTTP ${response.status}`);
    pause = 1000;
    await read(response.body.pipeThrough(new TextDecoderStream()).getReader());
  } catch {
    // Told by the banner of the page; tried again below.
  }
  if (mine.signal.aborted) return;
  setTimeout(() => { if (request === mine) connect(); }, pause);
  pause = Math.min(pause * 2, 15000);
}

async function read(reader) {
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) if (line) take(JSON.parse(line));
  }
}

function take(record) {
  if (record.seq <= lastSeq) return; // after a reconnection
  lastSeq = record.seq ?? lastSeq;
  if (!waiting.length) setTimeout(draw, 50);
  waiting.push(record);
  if (waiting.length > MOST_LINES) waiting.shift();
}

function draw() {
  const stay = follow.checked;
  const lines = waiting.map(lineOf);
  waiting = [];
  const room = MOST_LINES - lines.length;
  while (box.children.length > room) box.firstChild.remove();
  box.append(...lines);
  if (stay) box.scrollTop = box.scrollHeight;
}

function lineOf(record) {
  if (record.lagged) return make("div", { class: "gap" }, `… ${record.lagged} lines were lost: they came too fast`);
  const line = make("div", { class: record.stream === "supervisor" ? "own" : "" });
  if (!chosen.value) line.append(make("span", { class: "who" }, `${record.service} `));
  line.append(plain(record.text));
  line.hidden = !matches(line);
  return line;
}

const matches = (line) => line.textContent.toLowerCase().includes(filter.value.toLowerCase());

chosen.addEventListener("change", start);
filter.addEventListener("input", () => {
  for (const line of box.children) line.hidden = !matches(line);
  if (follow.checked) box.scrollTop = box.scrollHeight;
});
follow.addEventListener("change", () => {
  if (follow.checked) box.scrollTop = box.scrollHeight;
});
// Scrolling up means reading: the box must not jump away. At the end it follows again.
box.addEventListener("scroll", () => {
  follow.checked = box.scrollHeight - box.scrollTop - box.clientHeight < 24;
});
