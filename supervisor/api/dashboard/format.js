// Numbers as people read them. Files and disks in decimal units, memory in binary ones.

export function size(bytes) {
  let value = bytes ?? 0;
  for (const unit of ["B", "kB", "MB", "GB"]) {
    if (value < 1000) return unit === "B" ? `${value} B` : `${value.toFixed(1)} ${unit}`;
    value /= 1000;
  }
  return `${value.toFixed(1)} TB`;
}

export const gib = (bytes) => `${((bytes ?? 0) / 2 ** 30).toFixed(1)} GiB`;
export const memory = (bytes) => (bytes < 2 ** 30 ? `${Math.round(bytes / 2 ** 20)} MiB` : gib(bytes));
export const percent = (ratio) => `${Math.round(ratio * 100)} %`;

export function duration(seconds) {
  const total = Math.floor(seconds ?? 0);
  if (total < 60) return `${total} s`;
  if (total < 3600) return `${Math.floor(total / 60)} min ${total % 60} s`;
  if (total < 86400) return `${Math.floor(total / 3600)} h ${Math.floor((total % 3600) / 60)} min`;
  return `${Math.floor(total / 86400)} d ${Math.floor((total % 86400) / 3600)} h`;
}

export function ago(iso) {
  const seconds = (Date.now() - Date.parse(iso)) / 1000;
  if (!(seconds > 0) || seconds > 86400 * 3650) return "";
  if (seconds < 60) return "under a minute";
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  return duration(seconds).replace(/ 0 (min|h)$/, "");
}

export const clock = (iso) => new Date(iso).toLocaleTimeString([], { hourCycle: "h23" });

/** Terminal colours and other control characters say nothing on a page. */
const ESCAPES = /\u001b(?:\[[0-?]*[ -/]*[@-~]|\][^\u0007\u001b]*(?:\u0007|\u001b\\)|.)?/g;
export const plain = (line) => line.replace(ESCAPES, "");

export function list(names) {
  if (names.length < 2) return names.join("");
  return `${names.slice(0, -1).join(", ")} and ${names.at(-1)}`;
}
