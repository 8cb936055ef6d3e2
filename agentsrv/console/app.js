// The console: one connection, and what of it is shown.

import { Client } from "./client.js";
import { clock, confirm, h, labelled, say, wording } from "./dom.js";
import { TaskState } from "./fold.js";
import { Frames } from "./frames.js";
import { showStart } from "./start.js";
import { showTask } from "./task.js";
import { Tasks } from "./tasks.js";

const TOKEN = "agentsrv.token"; // in the tab's own storage, and only where that was asked for
const THEME = "agentsrv.theme";
const $ = (id) => document.getElementById(id);

const url = new URL("ws", document.baseURI);
url.protocol = url.protocol.replace("http", "ws");
url.search = url.hash = "";
const frames = new Frames($("frames"), () => [url.href, Boolean(client.options.token)]);
const client = new Client(url, {
  token: sessionStorage.getItem(TOKEN) ?? undefined,
  onFrame: (direction, text) => frames.note(direction, text),
  onState: () => queueMicrotask(showState), // the first state is told before there is a client
});
const tasks = new Tasks($("tasks"), client);
let leave = () => {};

// The connection, and signing in.

function showState() {
  const { name, reason, retryAt = 0 } = client.state;
  const left = Math.ceil((retryAt - Date.now()) / 1000);
  const words = {
    connected: client.principal ? `connected as ${client.principal}` : "connected",
    waiting: left > 0 ? `offline, next try in ${left} s` : "offline",
    unauthenticated: "not signed in",
    closed: `closed: ${reason}`,
  };
  $("connection").dataset.state = name;
  $("connection").title = reason ?? "";
  say($("connection-text"), words[name] ?? name);
  $("retry").hidden = name !== "waiting";
  $("sign-out").hidden = !client.options.token || name === "unauthenticated";
  showOutage(name, left);
  const isOut = document.body.classList.contains("signed-out");
  document.body.classList.toggle("signed-out", name === "unauthenticated" || (isOut && name !== "connected"));
  if (name === "unauthenticated") signIn(reason);
  if (name === "connected" && isOut) route();
}

const SENT = { create: "New task", execute: "Start", cancel: "Cancel", respond: "Answer", send: "Message" };
let lostAt = 0;

/** A band while there is no connection: since when, what is shown, what will be sent. */
function showOutage(name, left) {
  if (name === "connected" || name === "unauthenticated") lostAt = 0;
  else if (hasBeenConnected) lostAt ||= Date.now();
  hasBeenConnected ||= name === "connected";
  clock.stoppedAt = lostAt;
  $("outage").hidden = !lostAt;
  if (!lostAt) return;
  const gone = Math.round((Date.now() - lostAt) / 1000);
  const queued = client.pending.map((command) => SENT[command]).filter(Boolean);
  say($("outage-state"), name === "closed" ? "The connection has ended." : "No connection. Tasks continue on the server.");
  say($("outage-facts"), [`Shown as of ${new Date(lostAt).toLocaleTimeString()}, ${gone} s ago.`,
    left > 0 && `Next try in ${left} s.`,
    queued.length > 0 && `Will be sent: ${queued.join(", ")}.`].filter(Boolean).join(" "));
}
let hasBeenConnected = false;

function signIn(reason) {
  leave();
  const input = h("input", { id: "token", type: "password", autocomplete: "current-password", required: true });
  const keep = h("input", { type: "checkbox", checked: true });
  const onsubmit = (event) => {
    event.preventDefault();
    const token = input.value.trim();
    if (keep.checked) sessionStorage.setItem(TOKEN, token);
    client.signIn(token);
  };
  $("page").replaceChildren(h("form.start", { onsubmit }, h("h1", "Sign in"),
    h("p.soft", "This server asks who you are. An API key will do, or a token of your issuer."),
    h("p.error", { role: "alert" }, reason), labelled("Token", input),
    h("label", keep, " Keep it until this tab is closed"), h("p", h("button.main", "Sign in"))));
  input.focus();
}

$("retry").onclick = () => client.reconnect();
addEventListener("online", () => client.state.name === "closed" || client.reconnect());
setInterval(() => ["waiting", "connecting"].includes(client.state.name) && showState(), 500);
$("sign-out").onclick = () => {
  sessionStorage.removeItem(TOKEN);
  location.reload();
};

// The pages.

async function route() {
  leave();
  leave = () => {};
  const [, page, task_id] = location.hash.split("/");
  document.body.dataset.page = page || "tasks";
  document.title = "agentsrv";
  tasks.mark(page === "task" ? task_id : "");
  arrange();
  const root = $("page");
  if (page === "task") {
    leave = showTask(root, client, task_id);
    return;
  }
  try {
    await showStart(root, client, page === "new" && task_id ? await stateOf(task_id) : null);
  } catch (error) {
    root.replaceChildren(h("p.error", { role: "alert" }, wording(error)));
  }
}

/** The state of a task after all that is logged now. */
async function stateOf(task_id) {
  const state = new TaskState();
  const { seq } = await client.command("status", { task_id });
  for await (const event of client.events(task_id)) {
    state.apply(event);
    if (event.seq >= seq) break;
  }
  return state;
}

addEventListener("hashchange", async () => {
  await route();
  $("page").querySelector("h1")?.focus();
});
$("skip").onclick = (event) => {
  event.preventDefault();
  $("page").focus();
};

// Where the list is all that is shown, it is the page.

const narrow = matchMedia("(max-width: 48rem)");
function arrange() {
  const isAlone = narrow.matches && document.body.dataset.page === "tasks";
  $("tasks").setAttribute("role", isAlone ? "main" : "navigation");
  $("tasks-title").setAttribute("aria-level", isAlone ? 1 : 2);
}
narrow.addEventListener("change", arrange);

// Keys, while nothing is typed.

const KEYS = {
  "/": ["search the tasks", () => tasks.search()],
  n: ["new task", () => (location.hash = "#/new")],
  j: ["next task", () => tasks.step(1)],
  k: ["previous task", () => tasks.step(-1)],
  a: ["answer: to the first question", () => document.querySelector(".question :is(input, select, textarea, button)")?.focus()],
  "?": ["these keys", () => confirm("Keys", h("dl.keys", Object.entries(KEYS).flatMap(([key, [what]]) =>
    [h("dt", h("kbd", key)), h("dd", what)])), "Close", () => {})],
};
addEventListener("keydown", (event) => {
  const isTyping = event.target.closest?.("input, select, textarea, dialog");
  if (isTyping || event.ctrlKey || event.metaKey || event.altKey || !KEYS[event.key]) return;
  event.preventDefault();
  KEYS[event.key][1]();
});

// Frames and colours.

$("show-frames").onclick = () => $("show-frames").setAttribute("aria-expanded", frames.toggle());

const system = matchMedia("(prefers-color-scheme: dark)");
const theme = () => localStorage.getItem(THEME) ?? (system.matches ? "dark" : "light");
const other = () => (theme() === "dark" ? "light" : "dark");
function dress() {
  document.documentElement.dataset.theme = theme();
  $("theme").textContent = other() === "dark" ? "Dark" : "Light";
}
$("theme").onclick = () => {
  localStorage.setItem(THEME, other());
  dress();
};
system.addEventListener("change", dress);
dress();
route();
