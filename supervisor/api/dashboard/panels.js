// Each function draws one panel from the snapshot.

import { byId, facts, hint, keyed, level, make, replace, spark, text } from "./dom.js";
import { ago, clock, duration, gib, list, memory, percent, size } from "./format.js";

const HISTORY = 150;
const history = new Map();

/** Remember a value for its line; one is kept per snapshot. */
function remember(name, value) {
  const values = history.get(name) ?? [];
  values.push(value);
  if (values.length > HISTORY) values.shift();
  history.set(name, values);
  return values;
}

const worry = (ratio, warn = 0.8, bad = 0.95) => (ratio >= bad ? "error" : ratio >= warn ? "warning" : "");

export function sentence(snapshot) {
  const services = Object.values(snapshot.services);
  const down = services.filter((service) => service.required && !service.ready);
  switch (snapshot.phase) {
    case "rescue": return "The configuration cannot be used, so nothing was started.";
    case "stopping": return "The pod is stopping; outputs are being stored.";
    case "ready": {
      const { total, done, failed } = snapshot.downloads;
      const moving = total - done - failed;
      const more = moving > 0 ? ` ${moving} more ${moving === 1 ? "model is" : "models are"} on the way.` : "";
      return (more ? "Ready to work." : "Everything that is needed is up.") + more + (failed ? ` ${failed} ${failed === 1 ? "model" : "models"} could not be downloaded.` : "");
    }
    case "degraded":
      if (down.length === 1) return `${down[0].name} is down: ${down[0].message || down[0].state}.`;
      return `Not ready: ${list(snapshot.missing)}.`;
    default:
      return snapshot.missing.length ? `Starting: waiting for ${list(snapshot.missing.slice(0, 5))}${snapshot.missing.length > 5 ? " …" : ""}.` : "Starting.";
  }
}

export function header(snapshot) {
  const phase = byId("phase");
  text(phase, snapshot.phase);
  phase.dataset.state = snapshot.phase;
  text(byId("sentence"), sentence(snapshot));
  document.title = `${snapshot.phase} · ComfyUI pod`;
  text(byId("version"), `supervisor ${snapshot.version}${snapshot.config_file ? ` · ${snapshot.config_file}` : ""}`);
  const found = Object.entries(snapshot.links).filter(([, address]) => /^https?:\/\//.test(address));
  byId("links").hidden = !found.length;
  const ready = found.map(([name]) => Boolean(snapshot.services[name]?.ready));
  replace(byId("links"), [found, ready], () => found.map(([name, address], i) =>
    make("a", { class: name === "comfyui" && ready[i] ? "button primary" : "button", href: address, target: "_blank", rel: "noopener noreferrer" },
      `Open ${title(name)}${ready[i] ? "" : " (not up)"}`)));
}

export function title(name) {
  return { comfyui: "ComfyUI", jupyter: "JupyterLab", filebrowser: "FileBrowser", ssh: "SSH" }[name] ?? name;
}

export function rescue(snapshot) {
  byId("rescue").hidden = snapshot.phase !== "rescue";
  document.body.classList.toggle("rescue", snapshot.phase === "rescue");
  replace(byId("rescue-list"), snapshot.rescue, () => snapshot.rescue.map((fault) => make("li", {}, fault)));
}

export function concerns(snapshot) {
  const items = [
    ...snapshot.alerts.map((alert) => ({ ...alert, key: `alert ${alert.name}` })),
    ...snapshot.advice.map((advice) => ({ ...advice, key: `advice ${advice.code} ${advice.service}` })),
    ...snapshot.notes.map((note) => ({ message: note, severity: "info", key: `note ${note}` })),
  ];
  byId("concerns").hidden = !items.length;
  keyed(byId("concern-list"), items, (item) => item.key, () => make("li"), (row, item) => {
    replace(row, item, () => [
      make("span", { class: "pill", "data-state": item.severity }, item.severity),
      make("div", {},
        make("div", {}, item.message, item.count > 1 ? ` (${item.count} times${item.last_seen ? `, last at ${clock(item.last_seen)}` : ""})` : ""),
        hint(item.hint),
        more(item)),
    ]);
  });
}

/** Where it is explained: on a page of the pod, or elsewhere. */
function more(item) {
  const address = (item.link ?? "").replace(/^docs\/troubleshooting\.md#/, "/help#");
  if (!/^(https:\/\/|\/help#)/.test(address)) return null;
  return make("a", { href: address, target: "_blank", rel: "noopener noreferrer" }, "more about this");
}

const RESTING = ["stopped", "failed", "disabled"];

export function services(snapshot, act) {
  const create = (service) => {
    const row = make("li", {},
      make("div", { class: "service-name" }, make("span", {}, title(service.name)), make("span", { class: "pill" })),
      make("div", { class: "service-why" }),
      make("div", { class: "service-buttons", role: "group", "aria-label": `Actions for ${service.name}` }));
    for (const [action, label] of [["start", "Start"], ["restart", "Restart"], ["stop", "Stop"], ["logs", "Logs"]]) {
      const button = make("button", { type: "button", "data-action": action, "aria-label": `${label} ${service.name}` }, label);
      button.addEventListener("click", () => act(service.name, action, button));
      row.lastChild.append(button);
    }
    return row;
  };
  keyed(byId("service-list"), Object.values(snapshot.services), (service) => service.name, create, (row, service) => {
    const [head, why, buttons] = row.children;
    const pill = head.lastChild;
    text(pill, service.state);
    pill.dataset.state = service.state;
    const resting = RESTING.includes(service.state);
    buttons.querySelector("[data-action=start]").hidden = !resting;
    buttons.querySelector("[data-action=restart]").hidden = resting;
    buttons.querySelector("[data-action=stop]").hidden = resting;
    const used = snapshot.host.service_memory_bytes[service.name];
    const cores = snapshot.host.service_cpu_cores[service.name];
    replace(why, [service, service.ready && ago(service.since), used, cores], () => story(service, used, cores));
  });
}

function ending({ signal, code }) {
  if (signal) return `Ended by ${signal}`;
  return code == null ? "Did not start" : `Ended with exit code ${code}`;
}

/** Why a service is in its state: its sentence, what to do, how it ended last. */
function story(service, used, cores) {
  const last = service.last_exit;
  const ended = last && ["backoff", "failed", "unhealthy"].includes(service.state);
  const quiet = [];
  if (service.ready && ago(service.since)) quiet.push(`up for ${ago(service.since)}`);
  if (service.restarts) quiet.push(`${service.restarts} ${service.restarts === 1 ? "restart" : "restarts"}`);
  if (used) quiet.push(memory(used));
  if (cores >= 0.05) quiet.push(`${cores.toFixed(1)} ${cores.toFixed(1) === "1.0" ? "core" : "cores"}`);
  if (service.pid) quiet.push(`pid ${service.pid}`);
  if (!service.required && !service.ready) quiet.push("not required");
  return [
    service.message ? make("span", { class: service.state === "failed" ? "fault" : "" }, service.message) : null,
    ended ? make("span", {}, `${ending(last)}: ${last.reason}`) : null,
    hint(service.hint),
    quiet.length ? make("span", { class: "quiet" }, quiet.join(" · ")) : null,
  ];
}

export function gpu(snapshot) {
  const { gpu: found } = snapshot;
  for (const device of found.devices) {
    if (device.utilization_ratio != null) remember(`gpu ${device.index}`, device.utilization_ratio);
  }
  const codecs = Object.entries(found.nvenc);
  replace(byId("gpu"), [found, [...history].length && history.get("gpu 0")], () => [
    ...found.devices.flatMap(card),
    found.devices.length ? null : make("p", { class: "quiet" }, found.error ? `No GPU: ${found.error}.` : "No GPU was found."),
    facts([
      ["Memory mode", found.mode?.replaceAll("_", " ")],
      ["Tier", found.tier],
      ["Driver", [found.driver, found.cuda && `CUDA ${found.cuda}`].filter(Boolean).join(", ")],
      ["Encoding", codecs.length ? list(codecs.filter(([, works]) => works).map(([name]) => name)) || "none works" : ""],
      ["Stepped down", found.ladder_step ? `${found.ladder_step} ${found.ladder_step === 1 ? "step" : "steps"}` : ""],
    ]),
    ...found.ladder_reasons.map((reason) => make("p", { class: "why" }, reason)),
  ]);
  byId("ladder").hidden = !found.ladder_step;
  const why = found.reasons;
  replace(byId("gpu-why"), why, () => [reasons(why)]);
}

function card(device) {
  const used = device.memory_used_bytes;
  const total = device.memory_total_bytes;
  const values = history.get(`gpu ${device.index}`) ?? [];
  return [
    make("p", { class: "device" }, device.name, device.temperature_celsius != null ? ` · ${device.temperature_celsius.toFixed(0)} °C` : ""),
    level({ label: "Memory", value: used == null ? gib(total) : `${gib(used)} of ${gib(total)}`, ratio: used == null ? 0 : used / total, state: worry((used ?? 0) / total, 0.9, 0.97) }),
    device.utilization_ratio != null ? level({ label: "Use", value: percent(device.utilization_ratio), ratio: device.utilization_ratio }) : null,
    device.throttle_reasons.length ? make("p", { class: "quiet" }, `Slowed down: ${list(device.throttle_reasons)}.`) : null,
    values.length > 2 ? spark(values, "GPU use over the last minutes") : null,
  ];
}

function reasons(texts) {
  if (!texts.length) return null;
  return make("details", { class: "why" }, make("summary", {}, "Why these settings"),
    make("ul", {}, ...texts.map((reason) => make("li", {}, reason))));
}

function space(disk) {
  const soon = disk.full_in_s != null && disk.full_in_s < 3600;
  return `${size(disk.free_bytes)} of ${size(disk.total_bytes)} free${soon ? `, full in ${Math.ceil(disk.full_in_s / 60)} min` : ""}`;
}

export function host(snapshot) {
  const { host: found } = snapshot;
  if (found.cpu_ratio != null) remember("cpu", found.cpu_ratio);
  const held = found.memory_used_bytes;
  const limit = found.memory_limit_bytes;
  const network = [found.network_received_bytes_per_s, found.network_sent_bytes_per_s];
  replace(byId("host"), [found, history.get("cpu")], () => [
    found.cpu_ratio != null ? level({ label: "CPU", value: `${percent(found.cpu_ratio)}${found.cpu_limit ? ` of ${+found.cpu_limit.toFixed(1)} cores` : ""}`, ratio: found.cpu_ratio, state: worry(found.cpu_ratio) }) : null,
    (history.get("cpu") ?? []).length > 2 ? spark(history.get("cpu"), "CPU use over the last minutes") : null,
    held != null ? level({ label: "Memory", value: limit ? `${gib(held)} of ${gib(limit)}` : gib(held), ratio: limit ? held / limit : 0, state: worry(limit ? held / limit : 0, 0.85) }) : null,
    facts([
      ...found.silent_disks.map((mount) => [mount, "does not answer"]),
      ...Object.entries(found.disks).filter(([mount]) => !found.silent_disks.includes(mount)).map(([mount, disk]) => [mount, space(disk)]),
      ["Storage", found.storage_mode],
      ["Jobs in ComfyUI", found.comfyui_queue_length],
      ["ComfyUI answers in", found.comfyui_response_s != null ? `${Math.round(found.comfyui_response_s * 1000)} ms` : ""],
      ["Network", network[0] != null ? `${size(Math.round(network[0]))}/s in, ${size(Math.round(network[1] ?? 0))}/s out` : ""],
    ]) ?? (found.cpu_ratio == null && held == null ? make("p", { class: "quiet" }, "No measurements yet.") : null),
  ]);
}

export function boot(snapshot) {
  const { spans_s: spans, median_s: medians } = snapshot.boot;
  const entries = Object.entries(spans).sort((a, b) => a[1] - b[1]);
  const longest = Math.max(...Object.values(spans), ...Object.values(medians), 0.001);
  replace(byId("boot"), snapshot.boot, () => entries.length ? entries.map(([name, seconds]) => {
    const usual = medians[name];
    const value = usual == null ? `${seconds.toFixed(2)} s` : `${seconds.toFixed(2)} s (usually ${usual.toFixed(2)} s)`;
    const bar = level({ label: name.replaceAll("_", " "), value, ratio: seconds / longest, state: usual && seconds > usual * 1.5 + 1 ? "warning" : "" });
    if (usual != null) {
      const mark = make("span", { class: "mark" });
      mark.style.left = `calc(${(usual / longest) * 100}% - 2px)`;
      bar.lastChild.append(mark);
    }
    return bar;
  }) : [make("p", { class: "quiet" }, "No times yet.")]);
}

export function idle(snapshot) {
  const { idle: found } = snapshot;
  byId("keep").hidden = !found.enabled;
  byId("release").hidden = !found.kept_until;
  replace(byId("idle"), found, () => {
    if (!found.enabled) return [];
    const limit = found.limit_s || 1;
    const passed = `${duration(found.idle_s)} of ${duration(limit)}`;
    const unused = found.ends_in_s == null ? passed : `${passed}, ends in ${duration(found.ends_in_s)}`;
    const shown = found.ending ? `${found.ending} now` : found.busy_because.length ? list(found.busy_because) : unused;
    return [
      level({ label: found.busy_because.length ? "In use" : "Unused", value: shown, ratio: found.idle_s / limit, state: worry(found.idle_s / limit, 0.7, 0.9) }),
      found.problem ? make("p", { class: "fault" }, found.problem) : null,
      found.kept_until ? make("p", { class: "quiet" }, `Kept until ${new Date(found.kept_until).toLocaleTimeString()}.`) : null,
    ];
  });
}
