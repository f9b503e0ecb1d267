// Small helpers around the DOM. Text only ever goes in as textContent or as attributes.

export const byId = (id) => document.getElementById(id);

/** Make an element: attributes are set as such, children are nodes or text. */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child != null && child !== ""));
  return element;
}

/** Set a text only when it differs, so that selections and screen readers are left alone. */
export function text(element, value) {
  const wanted = value == null ? "" : String(value);
  if (element.textContent !== wanted) element.textContent = wanted;
}

/** Replace the children when what they were made from has changed. */
export function replace(element, data, build) {
  const key = JSON.stringify(data);
  if (element.dataset.made === key) return;
  element.dataset.made = key;
  element.replaceChildren(...build().filter(Boolean));
}

/** Keep one child per item, by key and in order; existing children stay, and so does focus. */
export function keyed(list, items, key, create, update) {
  const known = new Map([...list.children].map((child) => [child.dataset.key, child]));
  let place = list.firstElementChild;
  for (const item of items) {
    const name = String(key(item));
    let child = known.get(name);
    known.delete(name);
    if (!child) {
      child = create(item);
      child.dataset.key = name;
    }
    if (child !== place) list.insertBefore(child, place);
    else place = place.nextElementSibling;
    update(child, item);
  }
  for (const child of known.values()) child.remove();
  const empty = document.querySelector(`[data-empty="${list.id}"]`);
  if (empty) empty.hidden = items.length > 0;
}

const ADDRESS = /(https:\/\/[^\s<>"'`]*[^\s<>"'`.,;:!?)\]])/;

/** A hint of the supervisor; the addresses in it can be followed. */
export function hint(words) {
  if (!words) return null;
  const parts = words.split(ADDRESS).map((part, i) => (i % 2
    ? make("a", { href: part, target: "_blank", rel: "noopener noreferrer" }, part)
    : part));
  return make("div", { class: "hint" }, ...parts);
}

/** A labelled bar. `ratio` null = not known. */
export function level({ label, value, ratio, role = "meter", state = "" }) {
  const fill = make("div", { class: ratio == null ? "fill unknown" : "fill", "data-level": state });
  if (ratio != null) fill.style.width = `${Math.min(100, Math.max(0, ratio * 100))}%`;
  const bounds = ratio == null ? {} : { "aria-valuenow": Math.round(ratio * 100) };
  return make("div", { class: "level" },
    make("div", { class: "level-text" }, make("span", {}, label), make("span", {}, value)),
    make("div", { class: "track", role, "aria-label": label, "aria-valuetext": value,
      "aria-valuemin": 0, "aria-valuemax": 100, ...bounds }, fill));
}

/** A definition list of the pairs that have a value. */
export function facts(pairs) {
  const known = pairs.filter(([, value]) => value != null && value !== "");
  if (!known.length) return null;
  return make("dl", { class: "facts" },
    ...known.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]));
}

/** A line of the last values, 0 to 1. */
export function spark(values, label) {
  const name = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(name, "svg");
  svg.setAttribute("class", "spark");
  svg.setAttribute("viewBox", "0 0 100 24");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", label);
  const line = document.createElementNS(name, "polyline");
  const step = 100 / Math.max(values.length - 1, 1);
  const points = values.map((value, i) => `${(i * step).toFixed(1)},${(23 - value * 22).toFixed(1)}`);
  line.setAttribute("points", points.join(" "));
  svg.append(line);
  return svg;
}

export function toast(message, hint) {
  const box = make("div", { class: "toast" }, message, hint ? make("small", {}, hint) : null);
  byId("toasts").append(box);
  setTimeout(() => box.remove(), hint ? 12000 : 5000);
}

/** Ask; resolves to the value of the chosen button, or "" when dismissed. */
export function ask(title, question, choices) {
  const dialog = byId("confirm");
  text(byId("confirm-title"), title);
  text(byId("confirm-text"), question);
  const buttons = choices.map(({ label, value, look }) =>
    make("button", { value, class: look, type: "submit" }, label));
  byId("confirm-actions").replaceChildren(...buttons, make("button", { value: "", type: "submit" }, "Cancel"));
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue), { once: true });
  });
}
