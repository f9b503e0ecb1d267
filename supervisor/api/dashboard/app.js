// The page: one stream of snapshots and events, and the actions.

import { ask, byId, keyed, make, replace, text, toast } from "./dom.js";
import { clock } from "./format.js";
import * as logs from "./logs.js";
import * as panels from "./panels.js";
import * as transfers from "./transfers.js";

const SILENCE_MS = 45000; // the supervisor sends a beat every 15 s
const MOST_EVENTS = 100;

let snapshot = null;
let bootId = null;
let source = null;
let heardAt = Date.now();
let pause = 1000;
let events = [];

function draw() {
  panels.header(snapshot);
  panels.rescue(snapshot);
  panels.concerns(snapshot);
  panels.services(snapshot, act);
  panels.gpu(snapshot);
  panels.host(snapshot);
  panels.boot(snapshot);
  panels.idle(snapshot);
  transfers.downloads(snapshot);
  transfers.sync(snapshot);
  logs.offer(Object.keys(snapshot.services));
}

function take(fresh) {
  const restarted = snapshot && fresh.boot.started_at !== bootId;
  bootId = fresh.boot.started_at;
  snapshot = fresh;
  if (restarted) {
    events = [];
    logs.start();
  }
  draw();
}

function note(event) {
  if (events.some((known) => known.seq === event.seq)) return;
  events = [event, ...events].sort((a, b) => b.seq - a.seq).slice(0, MOST_EVENTS);
  keyed(byId("event-list"), events, (item) => item.seq, () => make("li"), (row, item) => {
    replace(row, item, () => [
      make("time", { datetime: item.at }, clock(item.at)),
      make("span", { "data-severity": item.severity }, item.message),
    ]);
  });
}

// -- the connection ---------------------------------------------------------------------

function connect() {
  source?.close();
  source = new EventSource("/v1/stream");
  source.addEventListener("snapshot", (message) => {
    heard();
    take(JSON.parse(message.data));
  });
  source.addEventListener("event", (message) => {
    heard();
    note(JSON.parse(message.data));
  });
  source.addEventListener("beat", heard);
  source.addEventListener("error", () => {
    lost();
    if (source.readyState === EventSource.CLOSED) again();
  });
}

function heard() {
  heardAt = Date.now();
  pause = 1000;
  byId("lost").hidden = true;
  document.body.classList.remove("stale");
  byId("live").dataset.live = "yes";
  text(byId("live-text"), "live");
}

function lost() {
  byId("lost").hidden = false;
  document.body.classList.add("stale");
  byId("live").dataset.live = "no";
  text(byId("live-text"), "not connected");
  const since = new Date(heardAt).toLocaleTimeString([], { hourCycle: "h23" });
  text(byId("lost-text"), `What you see is as of ${since}. Trying again …`);
}

/** The browser gave up: find out why, and try again ever more slowly. */
async function again() {
  const wait = pause;
  pause = Math.min(pause * 2, 15000);
  setTimeout(async () => {
    try {
      const answer = await fetch("/v1/status", { cache: "no-store" });
      if (answer.status === 401) location.reload(); // the token has changed
    } catch {
      // Not reachable: the new connection fails too and comes back here.
    }
    connect();
  }, wait);
}

setInterval(() => {
  if (Date.now() - heardAt < SILENCE_MS) return;
  lost();
  heardAt = Date.now();
  connect();
}, 5000);
addEventListener("online", connect);

// -- actions ------------------------------------------------------------------------------

async function send(path, body, done) {
  try {
    const response = await fetch(path, { method: "POST", body: JSON.stringify(body ?? {}), headers: { "Content-Type": "application/json" } });
    const answer = await response.json();
    if (!response.ok) {
      toast(answer.error.message, answer.error.hint);
      return null;
    }
    toast(response.status === 202 && answer.pending ? "This takes a while and goes on by itself" : done);
    return answer;
  } catch {
    toast("Cannot reach the supervisor", "try again when the connection is back");
    return null;
  }
}

async function act(name, action, button) {
  if (action === "logs") {
    logs.show(name);
    return;
  }
  const body = {};
  const called = panels.title(name);
  const jobs = name === "comfyui" ? snapshot.host.comfyui_queue_length ?? 0 : 0;
  if (action === "restart" && jobs) {
    const choice = await ask(`Restart ${called}?`, `${jobs} ${jobs === 1 ? "job is" : "jobs are"} running or waiting.`, [
      { label: "When they are done", value: "later", look: "primary" },
      { label: "Now, and lose them", value: "now", look: "danger" },
    ]);
    if (!choice) return;
    body.now = choice === "now";
  } else if (action !== "start") {
    const what = action === "stop" ? "It stays down until you start it." : "It is back in a moment.";
    const label = action === "stop" ? "Stop" : "Restart";
    if (!await ask(`${label} ${called}?`, what, [{ label, value: "yes", look: "primary" }])) return;
  }
  button.disabled = true;
  const words = { start: "starting", stop: "stopped", restart: "restarting" };
  await send(`/v1/services/${encodeURIComponent(name)}/${action}`, action === "restart" ? body : {}, `${called}: ${words[action]}`);
  button.disabled = false;
}

async function reload() {
  const changes = await send("/v1/reload", {}, "The configuration was loaded");
  const waiting = changes?.needs_restart ?? [];
  if (waiting.length) toast(`Changes in ${waiting.join(", ")} come with the next start of the pod`);
}

async function shutdown() {
  const question = "Services are stopped and outputs are stored. A pod that is billed by the hour may be started again by its host.";
  if (await ask("Stop the pod?", question, [{ label: "Stop it", value: "yes", look: "danger" }])) {
    await send("/v1/shutdown", {}, "The pod is stopping");
  }
}

async function resetLadder() {
  const question = "ComfyUI restarts with the memory mode of the plan when its queue is empty. It may run out of VRAM again.";
  if (await ask("Back to the planned mode?", question, [{ label: "Go back", value: "yes", look: "primary" }])) {
    await send("/v1/ladder/reset", {}, "ComfyUI restarts as planned");
  }
}

byId("ladder-reset").addEventListener("click", resetLadder);
byId("keep").addEventListener("click", () => send("/v1/idle/keep", { seconds: 3600 }, "The pod counts as in use for an hour"));
byId("release").addEventListener("click", () => send("/v1/idle/keep", { seconds: 0 }, "Idle time counts again"));
byId("reload").addEventListener("click", reload);
byId("rescue-reload").addEventListener("click", reload);
byId("shutdown").addEventListener("click", shutdown);
byId("sync-flush").addEventListener("click", () => send("/v1/sync/flush", { timeout_s: 50 }, "Outputs are stored"));
byId("sync-retry").addEventListener("click", () => send("/v1/sync/retry", {}, "Trying again"));

connect();
logs.start();
