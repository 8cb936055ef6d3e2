// The list of tasks: live, filtered, searched; only the rows in sight are elements.

import { badge, h, perFrame, time } from "./dom.js";
import { hasEnded, TaskState } from "./fold.js";

const ROW = 64; // px, as the style sheet has it
const MARGIN = 8; // rows kept above and below those in sight
const PAGE = 500; // rows asked for at once
const STATUSES = ["pending", "queued", "running", "input_required", "cancelling", "completed", "failed", "cancelled"];

export class Tasks {
  #client;
  #known = new Map();
  #rows = []; // all that is known, the newest first
  #view = []; // of these, what the filter and the search let through
  #cursor = null;
  #total = 0;
  #turn = 0; // of loading: an answer to an earlier one is not what is asked for now
  #current = "";
  #nodes = new Map();
  #search = h("input", { type: "search", placeholder: "Search", "aria-label": "Search tasks", oninput: () => this.#select() });
  #filter = h("select", { "aria-label": "Status", onchange: () => this.#load() });
  #active = ""; // the row that Tab comes to
  #list = h("ul.rows", {
    onkeydown: (event) => this.#move(event),
    onfocusin: ({ target }) => this.#activate(target.closest("li")),
  });
  #scroller = h("div.scroller", { onscroll: () => this.#render() }, this.#list);
  #count = h("p.soft.count", { role: "status" });

  constructor(root, client) {
    this.#client = client;
    this.#filter.append(h("option", { value: "" }, "All"),
      ...STATUSES.map((value) => h("option", { value }, badge(value).textContent)));
    root.append(h("div.bar", h("div.title", { id: "tasks-title", role: "heading", "aria-level": 2 }, "Tasks"), h("a.main", { href: "#/new" }, "New task")),
      h("div.bar", this.#search, this.#filter), this.#scroller, this.#count);
    new ResizeObserver(() => this.#render()).observe(this.#scroller);
    client.followAll((event) => this.#take(event), () => this.#load());
  }

  /** Marks the task whose page is open. */
  mark(task_id) {
    this.#current = task_id;
    this.#render();
  }

  /** Puts the focus into the search. */
  search() {
    this.#search.focus();
  }

  /** Puts the focus on the row `by` rows below the one that had it. */
  step(by) {
    const at = this.#view.findIndex(({ task_id }) => task_id === this.#active);
    this.#focus(Math.min(Math.max(at + by, 0), this.#view.length - 1));
  }

  async #load(cursor) {
    const turn = cursor ? this.#turn : ++this.#turn;
    this.#cursor = null;
    try {
      const fields = { status: this.#filter.value || undefined, cursor, limit: PAGE };
      const page = await this.#client.command("list", fields);
      if (turn !== this.#turn) return;
      if (!cursor) this.#known.clear();
      for (const row of page.tasks) this.#known.set(row.task_id, row);
      this.#cursor = page.next_cursor;
      this.#total = page.total;
      this.#rows = [...this.#known.values()].sort((a, b) => (a.created_at < b.created_at ? 1 : -1));
      this.#select();
    } catch (error) {
      this.#count.textContent = error.message;
    }
  }

  #take(event) {
    const { event_type, task_id, timestamp, data } = event;
    let row = this.#known.get(task_id);
    if (!row && event_type === "task_created") {
      row = { task_id, user_input: data.task_description, created_at: timestamp, state: new TaskState() };
      this.#known.set(task_id, row);
      this.#rows.unshift(row);
      this.#total += 1;
    }
    if (!row) return;
    row.state ??= TaskState.of(row);
    row.state.apply(event);
    this.#update(row);
    if (row.state?.hasUnknownQuestions && event_type.startsWith("input_")) this.#ask(row);
  }

  /** Shows the status of a row's state; a task that has ended needs its state no more. */
  #update(row) {
    row.status = row.state.status;
    if (hasEnded(row.status)) row.state = null;
    this.#select();
  }

  /** Asks the server which questions of a task are open: a row of a list does not name them. */
  async #ask(row) {
    try {
      const found = await this.#client.command("status", { task_id: row.task_id });
      if (!row.state) return;
      if (found.seq < row.state.seq) return this.#ask(row);
      row.state = TaskState.of(found);
      this.#update(row);
    } catch {
      // The task is gone, or the connection: then the list is loaded again.
    }
  }

  #select = perFrame(() => {
    const words = this.#search.value.toLowerCase().trim();
    const wanted = this.#filter.value;
    this.#view = this.#rows.filter(({ task_id, status, user_input }) => (!wanted || status === wanted) &&
      (!words || user_input.toLowerCase().includes(words) || task_id.startsWith(words)));
    if (words && this.#cursor) this.#load(this.#cursor); // a search is through all of them
    this.#show();
  });
  #render = perFrame(() => this.#show());

  #show() {
    const { scrollTop, clientHeight } = this.#scroller;
    const end = Math.min(this.#view.length, Math.ceil((scrollTop + clientHeight) / ROW) + MARGIN);
    const nodes = new Map();
    const start = Math.max(0, Math.floor(scrollTop / ROW) - MARGIN);
    const places = Array.from({ length: Math.max(0, end - start) }, (_, at) => start + at);
    // The row that has the focus stays, wherever it is: else the focus would fall to the page.
    const focused = this.#list.contains(document.activeElement) ? document.activeElement.closest("li") : null;
    const held = focused ? this.#view.findIndex(({ task_id }) => task_id === focused.dataset.id) : -1;
    if (held >= 0 && held < start) places.unshift(held);
    if (held >= end) places.push(held);
    const tabbable = this.#view.some(({ task_id }) => task_id === this.#active) ? this.#active : this.#view[start]?.task_id;
    for (const at of places) {
      const row = this.#view[at];
      const node = this.#nodes.get(row.task_id) ?? this.#row(row);
      const link = node.firstChild;
      if (link.dataset.status !== row.status) {
        link.dataset.status = row.status;
        node.querySelector(".badge").replaceWith(badge(row.status));
      }
      if (row.task_id === this.#current) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
      link.tabIndex = row.task_id === tabbable ? 0 : -1; // one stop for Tab; arrows go from row to row
      node.style.top = `${at * ROW}px`;
      node.setAttribute("aria-posinset", at + 1);
      node.setAttribute("aria-setsize", this.#view.length);
      nodes.set(row.task_id, node);
    }
    for (const [id, node] of this.#nodes) if (!nodes.has(id)) node.remove();
    if (focused && held < 0) this.#search.focus(); // what had the focus was filtered away
    let place = this.#list.firstChild;
    for (const node of nodes.values()) {
      if (node === place) place = place.nextSibling;
      else this.#list.insertBefore(node, place); // in the order in which Tab and readers go
    }
    this.#nodes = nodes;
    const { length } = this.#view;
    this.#list.style.height = `${length * ROW}px`;
    const many = this.#cursor ? `${length.toLocaleString()} of ${this.#total.toLocaleString()}` : length.toLocaleString();
    this.#count.textContent = length ? `${many} task${length > 1 ? "s" : ""}` : "No tasks here.";
    if (this.#cursor && end >= length - MARGIN) this.#load(this.#cursor);
  }

  #row({ task_id, status, user_input, created_at }) {
    const about = h("span.about", badge(status), time(created_at));
    return h("li", { "data-id": task_id }, h("a", { href: `#/task/${task_id}` }, h("span.what", user_input), about));
  }

  /** Up and Down go from row to row. */
  #move(event) {
    const by = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!by) return;
    event.preventDefault();
    this.#activate(event.target.closest("li"));
    this.step(by);
  }

  #activate(node) {
    if (node) this.#active = node.dataset.id;
  }

  #focus(at) {
    const row = this.#view[at];
    if (!row) return;
    this.#active = row.task_id;
    const { scrollTop, clientHeight } = this.#scroller;
    if (at * ROW < scrollTop) this.#scroller.scrollTop = at * ROW;
    else if ((at + 1) * ROW > scrollTop + clientHeight) this.#scroller.scrollTop = (at + 1) * ROW - clientHeight;
    this.#show();
    this.#nodes.get(row.task_id)?.firstChild.focus({ preventScroll: true });
  }
}
