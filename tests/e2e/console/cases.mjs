// Cases of the client, each by its name: `node cases.mjs NAME [URL]` prints what came of it as JSON.

import { AgentsrvError, Client, InputDeclined } from "../../../agentsrv/console/client.js";

const HELLO = { type: "hello", protocol: "agentsrv.v1", limits: { max_frame: 2000 }, commands: [] };

/** A WebSocket whose server is `answer(socket, command)`; a class for each case. */
function scripted(answer, hello = HELLO) {
  return class Socket {
    static sent = [];
    constructor() {
      if (hello) setTimeout(() => this.tell(hello));
    }
    tell(frame) {
      this.onmessage?.({ data: typeof frame === "string" ? frame : JSON.stringify(frame) });
    }
    send(text) {
      Socket.sent.push(text);
      const command = JSON.parse(text);
      setTimeout(() => answer(this, command));
    }
    close() {}
  };
}

const DECLINE = Symbol("decline");
const pong = (socket, { id, command }) => socket.tell({ type: "reply", id, command });
const told = (promise) => promise.then(
  (value) => ({ value: typeof value === "bigint" ? `${value}n` : value }),
  ({ code, name, message }) => ({ code: typeof code === "string" ? code : name, message }),
);

/** What is sent of a value, or why it is refused. */
async function sends(value) {
  const Socket = scripted(pong);
  const client = new Client("ws://x", { WebSocket: Socket });
  const { code, message } = await told(client.send("0123456789abcdef", value));
  const after = await told(client.command("ping"));
  client.close();
  const text = Socket.sent.find((one) => one.includes('"send"'));
  return { code, message, text: text?.match(/"message":(.*)\}$/)?.[1], works: after.code === undefined };
}

const cycle = { a: [] };
cycle.a.push(cycle);
let deep = 1;
for (let level = 0; level < 40; level++) deep = [deep];

const VALUES = {
  text: "a✓😀", object: { a: [1, -0.5, true, null, "b"], b: { c: 1e21 } }, undefinedField: { a: undefined, b: 1 },
  date: new Date(0), toJSON: { toJSON: () => [1] }, bigint: 2n ** 63n - 1n, instance: new (class { a = 1; })(),
  halfSurrogate: "a\ud83d", halfInside: { a: ["\udc00"] }, halfName: { "\ud83d": 1 }, undefined, nan: NaN,
  infinity: [Infinity], function: () => 1, functionInside: { a() {} }, symbol: Symbol("a"), hole: [, 1],
  undefinedItem: [undefined], cycle, deep, hugeBigint: 2n ** 63n, hugeNumber: 1e20, unsafe: 2 ** 53 + 2, map: new Map([[1, 2]]),
  set: new Set([1]), bytes: new Uint8Array(2), regexp: /a/, error: new Error("a"), promise: Promise.resolve(1),
  invalidDate: new Date(NaN), toJSONThrows: { toJSON() { throw new Error("mine"); } },
  getterThrows: { get a() { throw new Error("mine"); } }, boxed: Object(5), tooLarge: "x".repeat(2000),
  tooLargeInBytes: "✓".repeat(700),
};

/** What the client does after a connection that ended so: the state's name and reason. */
async function afterEnd(url, WebSocket) {
  let client;
  const found = await new Promise((resolve) => {
    const onState = ({ name, reason = "" }) => /^connect/.test(name) || resolve([name, reason]);
    client = new Client(url, { onState, WebSocket });
  });
  client.close();
  return found;
}

const cases = {
  /** Close codes, from a comma-separated list. */
  async closes(codes) {
    const found = {};
    for (const code of codes.split(",").map(Number)) {
      class Socket {
        constructor() {
          setTimeout(() => this.onopen?.());
          setTimeout(() => this.onmessage?.({ data: JSON.stringify(HELLO) }), 1);
          setTimeout(() => this.onclose?.({ code, reason: "so" }), 2);
        }
        close() {}
      }
      found[code] = await afterEnd("ws://x", Socket);
    }
    return found;
  },

  /** Handshakes that a server answers with an HTTP status, which is its path, for the package ws. */
  async statuses(url, statuses) {
    const { WebSocket } = await import(process.env.WS);
    const found = {};
    for (const status of statuses.split(",")) found[status] = await afterEnd(`${url}/${status}`, WebSocket);
    return found;
  },

  /** A server that refuses the origin which the package ws sends. */
  async origin(url) {
    const { WebSocket } = await import(process.env.WS);
    class Foreign extends WebSocket {
      constructor(address, protocols) {
        super(address, protocols, { origin: "https://elsewhere.example" });
      }
    }
    return afterEnd(url, Foreign);
  },

  async unnamedError() {
    const refusal = { type: "error", id: null, code: "invalid_json", message: "no", retryable: false };
    const Socket = scripted((socket, command) => (command.command === "ping" ? pong(socket, command) : socket.tell(refusal)));
    const client = new Client("ws://x", { WebSocket: Socket });
    const both = await Promise.all([told(client.command("status", { task_id: "a" })), told(client.command("ping"))]);
    client.close();
    return both.map(({ code }) => code ?? "answered");
  },

  async endedSubscription() {
    const gone = { type: "error", command: "subscribe", id: null, task_id: "a", code: "not_found", message: "gone", retryable: false };
    const Socket = scripted((socket, { id, command }) => {
      if (command === "ping") socket.tell(gone);
      socket.tell({ type: "reply", id, command, task_id: "a", status: "running", seq: 5 });
    });
    const client = new Client("ws://x", { WebSocket: Socket });
    const followed = told(client.follow("a", () => {}));
    await client.command("status", { task_id: "a" });
    const both = await Promise.all([told(client.command("ping")), followed]);
    client.close();
    return both.map(({ code }) => code ?? "answered");
  },

  /** Answers whose reply is lost and which then are in conflict, by how the question was settled. */
  async lostReplies() {
    console.warn = () => {}; // of the rounded integer
    const id = "a/b/1";
    const accepted = (value) => ({ action: "accept", value });
    const declined = { action: "decline", value: null };
    const tries = {
      "the same text": ["x", accepted("x")], "another text": ["x", accepted("y")], "another type": [1, accepted("1")],
      "another order": [{ a: 1, b: [{ c: 2, d: 3 }] }, accepted({ b: [{ d: 3, c: 2 }], a: 1 })],
      "another field": [{ a: 1 }, accepted({ a: 1, b: 2 })], "another list": [[1, 2], accepted([2, 1])],
      "a name of objects": [{ toString: 1 }, accepted({ toString: 1 })],
      "a date": [new Date(0), accepted("1970-01-01T00:00:00.000Z")], "a bigint": [7n, accepted(7)],
      "a rounded integer": [2n ** 60n, accepted(2 ** 60)],
      "nothing": [undefined, accepted(null)], "a secret": ["x", accepted({ sealed: "gAAA" })],
      "declined for accepted": ["x", declined], "accepted for declined": [DECLINE, accepted(null)],
      "both declined": [DECLINE, declined], "expired": ["x", { action: "expire", value: "x" }],
      "not settled": ["x", undefined], "the first time": ["x", accepted("x")],
    };
    const found = {};
    for (const [name, [value, settled]] of Object.entries(tries)) {
      let lost = name === "the first time";
      const answer = (socket, { id: number, command }) => {
        const envelope = { id: number, command, task_id: "a" };
        const event = (seq, event_type, data) => socket.tell({ type: "event", event_type, task_id: "a", seq, data });
        if (command !== "respond") socket.tell({ type: "reply", ...envelope, status: "running", seq: 3 });
        if (command === "subscribe") {
          event(1, "task_created", {});
          event(2, "input_received", { ...declined, input_id: "a/b/0" });
          event(3, settled ? "input_received" : "task_started", { ...settled, input_id: id });
        } else if (command === "respond" && !lost) {
          lost = true;
          socket.onclose({ code: 1006, reason: "" });
          client.reconnect();
        } else if (command === "respond") {
          socket.tell({ type: "error", ...envelope, code: "conflict", message: "settled", retryable: false });
        }
      };
      const client = new Client("ws://x", { WebSocket: scripted(answer) });
      const { code } = await told(value === DECLINE ? client.decline(id) : client.respond(id, value));
      found[name] = code ?? "answered";
      client.close();
    }
    return found;
  },

  async abortedBefore() {
    const Socket = scripted(pong);
    const client = new Client("ws://x", { WebSocket: Socket });
    const { code } = await told(client.run("x", { signal: AbortSignal.abort() }));
    await client.command("ping");
    client.close();
    return [code, Socket.sent.filter((text) => text.includes("create")).length];
  },

  async abortedWhileOffline() {
    let late;
    const Socket = scripted(pong, null);
    class Slow extends Socket {
      constructor() {
        super();
        late = this;
      }
    }
    const client = new Client("ws://x", { WebSocket: Slow });
    const leaving = new AbortController();
    const running = told(client.run("x", { signal: leaving.signal }));
    leaving.abort();
    const { code } = await running;
    late.tell(HELLO);
    await client.command("ping");
    client.close();
    return [code, Socket.sent.filter((text) => text.includes("create")).length];
  },

  async integers() {
    const body = '{"type":"reply","id":1,"command":"ping","max":9223372036854775807,"small":5,"half":1.5,' +
      '"long":0.12345678901234567890,"big":1e20,"text":"\\"9223372036854775807","list":[-9007199254740993]}';
    const seen = [];
    for (const bigints of [true, false]) {
      const Socket = scripted((socket) => socket.tell(body));
      const warned = [];
      console.warn = (text) => warned.push(text);
      const client = new Client("ws://x", { WebSocket: Socket, bigints });
      const reply = await client.command("ping");
      const types = Object.entries(reply).slice(3).map(([name, value]) => `${name}:${typeof value}:${value}`);
      seen.push([types, warned]);
      client.close();
    }
    return seen;
  },

  async afterClose() {
    const client = new Client("ws://x", { WebSocket: scripted(pong) });
    await client.command("ping");
    client.close();
    client.close();
    const id = "0123456789abcdef";
    const iterate = async () => { for await (const _ of client.events(id)); };
    const calls = [
      () => client.run("x"), () => client.create({ task_description: "x" }), () => client.command("ping"),
      () => client.respond(id, 1), () => client.decline(id), () => client.send(id, 1), () => client.follow(id, () => {}),
      iterate, async () => client.reconnect(), async () => client.signIn("x"), async () => client.followAll(() => {}, () => {}),
    ];
    return Promise.all(calls.map(async (call) => (await told(call())).code));
  },

  async handlersThatThrow() {
    const reported = [];
    console.error = (error) => reported.push(error.message);
    const boom = (name) => () => { throw new Error(name); };
    const answer = (socket, command) => {
      pong(socket, command);
      if (command.all) socket.tell({ type: "event", event_type: "task_created", task_id: "b", seq: 1, data: {} });
    };
    const client = new Client("ws://x", { WebSocket: scripted(answer), onState: boom("state"), onFrame: boom("frame") });
    client.followAll(boom("take"), boom("up"));
    await client.command("ping");
    await client.command("ping");
    client.close();
    return [...new Set(reported)].sort();
  },

  async onEventThatThrows() {
    const answer = (socket, { id, command }) => {
      socket.tell({ type: "reply", id, command, task_id: "a", seq: 1, status: "running" });
      if (command === "subscribe") socket.tell({ type: "event", event_type: "task_created", task_id: "a", seq: 1, data: {} });
    };
    const client = new Client("ws://x", { WebSocket: scripted(answer) });
    const { message } = await told(client.run("x", { onEvent: () => { throw new Error("mine"); } }));
    const works = await told(client.command("ping"));
    client.close();
    return [message, works.code ?? "works"];
  },

  async unreadableFrames() {
    const codes = [];
    for (const text of ["{", "null", "5", '"x"']) {
      const client = new Client("ws://x", { WebSocket: scripted((socket) => socket.tell(text)) });
      codes.push((await told(Promise.race([client.command("ping"), new Promise((done) => setTimeout(done, 200, "ignored"))]))));
      client.close();
    }
    return codes.map(({ code, value }) => code ?? value);
  },

  async noWebSocket() {
    delete globalThis.WebSocket;
    try {
      new Client("ws://x");
    } catch ({ message }) {
      return message;
    }
  },

  async wrongAnswers(url) {
    const client = new Client(url);
    const seen = [];
    const onInput = (question, refusal) => {
      seen.push([question.prompt, refusal?.code ?? null]);
      return [undefined, "a few", 3][seen.length - 1];
    };
    const { final_output } = await client.run("x", { agent: "asker", onInput });
    client.close();
    return [seen, final_output];
  },

  async declined(url) {
    const client = new Client(url);
    const onInput = async () => { throw new InputDeclined(); };
    const ended = await told(client.run("x", { agent: "asker", onInput }));
    client.close();
    return ended.message;
  },

  async brokenOnInput(url) {
    const client = new Client(url);
    const ended = await told(client.run("x", { agent: "asker", onInput: async () => { throw new Error("mine"); } }));
    client.close();
    return ended.message;
  },

  async realHalfSurrogate(url) {
    const client = new Client(url, { bigints: true });
    const refused = await told(client.run("a\ud83d"));
    const { final_output } = await client.run("x", { agent: "echo", params: { value: 9007199254740993n } });
    client.close();
    return [refused.code, final_output];
  },
};

const [, , name, ...given] = process.argv;
const result = name === "values"
  ? Object.fromEntries(await Promise.all(Object.entries(VALUES).map(async ([key, value]) => [key, await sends(value)])))
  : await cases[name](...given);
console.log(JSON.stringify(result ?? null));
void AgentsrvError;
