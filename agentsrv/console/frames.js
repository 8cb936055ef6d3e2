// The frames of the wire, to learn the protocol from.

import { button, h, perFrame } from "./dom.js";

const KEPT = 200; // frames
const SHOWN = 4000; // characters of one

/** The panel of frames: `note` adds one. It stands still while one is open or has the focus. */
export class Frames {
  #root;
  #frames = [];
  #list = h("ol", { tabindex: 0, "aria-label": "The newest last" });

  /** `target()` tells the URL, and whether the server wants a token. */
  constructor(root, target) {
    this.#root = root;
    this.target = target;
    const about = h("span.soft", `the last ${KEPT}, as they go over the wire`);
    root.append(h("div.bar", h("h2", "Frames"), about), this.#list);
  }

  note(direction, text) {
    this.#frames.push({ direction, text, at: new Date().toLocaleTimeString() });
    if (this.#frames.length > KEPT) this.#frames.shift();
    this.#show();
  }

  toggle() {
    this.#root.hidden = !this.#root.hidden;
    this.#show();
    return !this.#root.hidden;
  }

  #show = perFrame(() => {
    if (this.#root.hidden || this.#list.querySelector("[open], :focus")) return;
    this.#list.replaceChildren(...this.#frames.map((frame) => (frame.row ??= this.#row(frame))));
    this.#list.scrollTop = this.#list.scrollHeight;
  });

  #row({ direction, text, at }) {
    const { type, event_type, command } = JSON.parse(text);
    const row = h("details", h("summary", h(`strong.is-${direction}`, direction === "in" ? "↓ " : "↑ "),
      [type, event_type ?? command].filter(Boolean).join(" "),
      h("span.soft", ` ${at} · ${text.length.toLocaleString()} characters`)));
    const open = () => {
      const shown = JSON.stringify(JSON.parse(text), null, 2);
      const copies = direction === "out" && command !== "auth" && [
        copy("Copy as wscat", () => asWscat(text, ...this.target())),
        copy("Copy as Python", () => asPython(text, ...this.target())),
      ];
      const all = shown.length > SHOWN ? `${shown.slice(0, SHOWN)}…` : shown;
      row.append(h("pre", { tabindex: 0 }, all), h("p.actions", copies));
    };
    row.addEventListener("toggle", open, { once: true });
    return h("li", row);
  }
}

/** The frame as a line for a shell. */
export function asWscat(text, url, asks) {
  const who = asks ? ' -H "Authorization: Bearer $AGENTSRV_TOKEN"' : "";
  return `wscat -c '${url}' -s agentsrv.v1${who} -w 5 -x '${text.replaceAll("'", "'\\''")}'`;
}

/** The frame as a program for the library websockets. */
export function asPython(text, url, asks) {
  const who = asks ? ', additional_headers={"Authorization": "Bearer " + os.environ["AGENTSRV_TOKEN"]}' : "";
  return `${asks ? "import os\n\n" : ""}from websockets.sync.client import connect

with connect(${JSON.stringify(url)}, subprotocols=["agentsrv.v1"]${who}) as socket:
    socket.send(${JSON.stringify(text)})
    for frame in socket:
        print(frame)
`;
}

function copy(label, text) {
  const node = button(label, async () => {
    try {
      await navigator.clipboard.writeText(text());
      node.textContent = "Copied";
    } catch {
      node.parentNode.after(h("pre", { tabindex: 0 }, text())); // without encryption, by hand
    }
  });
  return node;
}
