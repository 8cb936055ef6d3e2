// Elements, words and times: what all parts of the console share.

/**
 * An element: `h("span.soft", { title, onclick }, ...children)`. Text stays text: there is no way
 * for it to become markup. What is null, undefined or false is left out.
 */
export function h(name, ...children) {
  const [tag, ...classes] = name.split(".");
  const node = document.createElement(tag);
  if (classes.length) node.className = classes.join(" ");
  const props = Object.getPrototypeOf(children[0] ?? "") === Object.prototype ? children.shift() : {};
  for (const [key, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (key === "value") node.value = value;
    else node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.flat().filter((one) => one !== undefined && one !== null && one !== false));
  return node;
}

export const button = (text, onclick) => h("button.quiet", { type: "button", onclick }, text);

/** A control with its name, and a hint where there is one; the control has an id. */
export function labelled(label, control, hint) {
  if (hint) control.setAttribute("aria-describedby", `${control.id}-hint`);
  const more = hint && h("span.soft", { id: `${control.id}-hint` }, hint);
  return h("div.field", h("label", { for: control.id }, label), control, more);
}

/** Sets a text, where that changes it: a live region would be read again. */
export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** What asks for `work` in the next frame, once however often it is called until then. */
export function perFrame(work) {
  let asked = 0;
  return () => {
    asked ||= requestAnimationFrame(() => {
      asked = 0;
      work();
    });
  };
}

/** A status as a word with its colour. */
export const badge = (status) => h(`span.badge.is-${status}`, status === "input_required" ? "asks" : status);

const CLOCK = new Intl.DateTimeFormat([], { timeStyle: "medium" });
const DAY = new Intl.DateTimeFormat([], { dateStyle: "medium", timeStyle: "short" });

/** A timestamp as a time of the day; of another day, with the date. */
export function time(timestamp) {
  const date = new Date(timestamp);
  const isToday = date.toDateString() === new Date().toDateString();
  return h("time", { datetime: timestamp, title: timestamp }, (isToday ? CLOCK : DAY).format(date));
}

/** Seconds for people: `0.4 s`, `12 s`, `3 min 5 s`, `2 h 10 min`. */
export function seconds(value) {
  if (value < 60) return `${value < 10 ? value.toFixed(1) : Math.floor(value)} s`;
  const minutes = Math.floor(value / 60);
  if (minutes < 60) return `${minutes} min ${Math.floor(value % 60)} s`;
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

/** The time that the page shows: it stands still while there is no connection. */
export const clock = { stoppedAt: 0 };

/** Seconds from one timestamp to another, or until now. */
export const between = (start, end) => Math.max(0, (end ? Date.parse(end) : clock.stoppedAt || Date.now()) - Date.parse(start)) / 1000;

/**
 * An error of the server in words, with the other fields that it refuses: the message has the first.
 * A field that is refused only because one within it is says nothing new.
 */
export function wording({ message, details }) {
  const others = (details ?? []).slice(1)
    .filter(({ field }) => !details.some((one) => one.field.startsWith(`${field}.`)));
  return [message, ...others.map(({ field, reason }) => `${field}: ${reason}`)].join("\n");
}

/** Asks in a dialog: `fields` are shown above the button `word`, which calls `done`. */
export function confirm(title, fields, word, done) {
  const onsubmit = (event) => {
    event.preventDefault();
    dialog.close();
    done();
  };
  const dialog = h("dialog", { "aria-label": title, onclose: () => dialog.remove() },
    h("form", { onsubmit }, h("h2", title), fields,
      h("p.actions", h("button.main", word), button("Back", () => dialog.close()))));
  document.body.append(dialog);
  dialog.showModal();
}
