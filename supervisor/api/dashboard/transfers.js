// Models on their way in, outputs on their way out.

import { byId, facts, hint, keyed, level, make, replace } from "./dom.js";
import { duration, size } from "./format.js";

const SHOWN = 12;
const ORDER = ["failed", "active", "verifying", "queued"];

export function downloads(snapshot) {
  const { downloads: found } = snapshot;
  const files = found.files.filter((file) => ORDER.includes(file.state));
  files.sort((a, b) => ORDER.indexOf(a.state) - ORDER.indexOf(b.state));
  const { files: _, ...sums } = found;
  replace(byId("download-total"), [sums, files.length], () => total(found));
  keyed(byId("download-list"), files.slice(0, SHOWN), (file) => file.name, () => make("li"), (row, file) => {
    replace(row, file, () => rowOf(file));
  });
  const rest = found.files.filter((file) => !ORDER.includes(file.state));
  const hidden = files.slice(SHOWN);
  byId("download-done").hidden = !(rest.length + hidden.length);
  const done = rest.filter((file) => file.state === "done").length;
  const words = [
    hidden.length ? `${hidden.length} more waiting` : "",
    done ? `${done} in place` : "",
    rest.length > done ? `${rest.length - done} skipped` : "",
  ];
  byId("download-done").querySelector("summary").textContent = words.filter(Boolean).join(", ");
  keyed(byId("done-list"), [...hidden, ...rest], (file) => file.name, () => make("li"), (row, file) => {
    replace(row, file, () => rowOf(file));
  });
}

/** The sum says "at least" while the size of some file is not known: no false promise. */
function total(found) {
  if (!found.files.length) return [make("p", { class: "quiet" }, "No models are wanted.")];
  const wanted = found.files.filter((file) => file.state !== "skipped");
  const known = wanted.every((file) => file.bytes_total != null);
  const value = [`${size(found.bytes_done)} of ${known ? "" : "at least "}${size(found.bytes_total)}`];
  if (found.rate_bytes_per_s > 0) value.push(`${size(Math.round(found.rate_bytes_per_s))}/s`);
  if (found.eta_s != null && found.done < found.total) value.push(`${duration(found.eta_s)} left`);
  const ratio = !known ? null : found.bytes_total ? found.bytes_done / found.bytes_total : 1;
  const label = `${found.done} of ${found.total} ${found.total === 1 ? "file" : "files"} in place`;
  const state = found.failed ? "error" : found.done === found.total ? "good" : "";
  return [level({ label, value: value.join(" · "), ratio, role: "progressbar", state })];
}

function rowOf(file) {
  const retrying = file.state === "queued" && file.error;
  const shown = retrying ? "retrying" : file.state;
  const share = file.bytes_total ? `${size(file.bytes_done)} of ${size(file.bytes_total)}` : file.bytes_done ? `${size(file.bytes_done)} so far` : "";
  const rate = file.state === "active" && file.rate_bytes_per_s > 0 ? ` · ${size(Math.round(file.rate_bytes_per_s))}/s` : "";
  const moving = file.state === "active" || file.state === "verifying" || (retrying && file.bytes_done);
  const amount = file.state === "done" || file.state === "skipped" ? (file.bytes_total ? size(file.bytes_total) : "") : share + rate;
  return [
    make("div", { class: "file-top" }, make("span", {}, file.name), make("span", { class: "pill", "data-state": shown }, shown)),
    moving && file.bytes_total
      ? level({ label: amount, value: `${Math.floor((100 * file.bytes_done) / file.bytes_total)} %`, ratio: file.bytes_done / file.bytes_total, role: "progressbar" })
      : amount ? make("div", { class: "quiet" }, amount) : null,
    file.error ? make("div", { class: file.state === "failed" ? "fault" : "" }, file.error) : null,
    hint(file.hint),
  ];
}

export function sync(snapshot) {
  const { sync: found } = snapshot;
  byId("sync-actions").hidden = !found.enabled;
  byId("sync-retry").hidden = !(found.failed || found.blocked);
  replace(byId("sync"), found, () => {
    if (!found.enabled) return [make("p", { class: "quiet" }, "Outputs stay on this pod: sync is off.")];
    const stored = found.uploaded + (found.uploaded_bytes ? ` (${size(found.uploaded_bytes)})` : "");
    return [
      facts([
        ["Stored in", found.target],
        ["Stored", stored],
        ["Waiting", String(found.pending)],
        ["Failed", found.failed ? String(found.failed) : ""],
        ["Incomplete", found.incomplete ? String(found.incomplete) : ""],
        ["Last", found.last_stored],
      ]),
      found.last_error ? make("p", { class: "fault" }, found.last_error) : null,
      hint(found.hint),
    ];
  });
}
