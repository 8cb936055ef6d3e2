// A client of agentsrv that reconnects and resumes; for browsers and Node, without dependencies.
// How to use it: docs/howto/javascript.md. The types are made of the published schema: protocol.d.ts.

/** @typedef {import("./protocol.d.ts").Event} Event */
/** @typedef {import("./protocol.d.ts").Commands} Commands */
/** @typedef {import("./protocol.d.ts").Replies} Replies */
/** @typedef {Omit<Commands["create"], "command" | "id">} CreateFields */

/**
 * What is known of the connection: `connecting`; `connected`: commands are answered; `waiting`: the
 * next attempt is made at `retryAt` (ms of the epoch); `unauthenticated`: a token is wanted, or
 * another one; `closed`: there will be none any more.
 * @typedef {object} State
 * @property {"connecting" | "connected" | "waiting" | "unauthenticated" | "closed"} name
 * @property {string} [reason]
 * @property {number} [retryAt]
 */

/**
 * @typedef {object} Options
 * @property {string} [token] An API key or a JSON Web Token.
 * @property {(state: State) => void} [onState] Is told each change of the connection's state.
 * @property {(direction: "in" | "out", text: string) => void} [onFrame] Is shown each frame.
 * @property {number} [attempts] Connections in a row that may fail; by default without end.
 * @property {number} [silence] ms without a frame until the server is asked for a sign of life, and
 *   as many again until the connection counts as lost; 15,000.
 * @property {boolean} [bigints] Integers beyond 2^53 arrive as `BigInt`; else they are rounded, and
 *   the first one is reported by `console.warn`.
 * @property {typeof WebSocket} [WebSocket] The class, where there is no global one.
 */

export const PROTOCOL = "agentsrv.v1";
const TERMINAL = new Set(["task_completed", "task_failed", "task_cancelled"]);
const ENDED = new Set(["completed", "failed", "cancelled"]);
const RECONNECT_AFTER = new Set([1001, 1006, 1011, 1012, 1013, 4408]); // close codes
const UNAUTHENTICATED = 4401; // close code
const REFUSED = "the server does not allow this origin";
const TRANSIENT = new Set([429, 500, 502, 503, 504]); // HTTP statuses, mostly of a proxy in between
const STATUS = /server response: (\d{3})/; // in the error of the package ws
const OPEN_TIMEOUT = 10_000; // ms, for the handshake, the greeting and the answer to `auth`
const BACKOFF = 250; // ms, doubled by each failure
const MAX_BACKOFF = 15_000; // ms
const ONCE = { resend: false };
const MAX_DEPTH = 32; // objects and arrays within each other, as the server takes them
const SETTLED = new Set(["conflict", "invalid_state", "not_found"]); // a question that is closed
const TOKENS = /"[^"\\]*(?:\\.[^"\\]*)*"|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?/gs; // strings and numbers of JSON

/** A refusal of the server, by its `code`; or `closed` and `interrupted`, of the client. */
export class AgentsrvError extends Error {
  /** @param {Omit<Partial<import("./protocol.d.ts").ErrorFrame>, "code"> & {code: string}} frame */
  constructor({ code, message, retryable = false, retry_after, details = [] }) {
    super(message);
    this.name = "AgentsrvError";
    this.code = code;
    this.retryable = retryable;
    /** Seconds. */
    this.retryAfter = retry_after;
    this.details = details;
    /** Whether an earlier answer to the same command may have been lost. */
    this.resent = false;
  }
}

/** A task ended without its output; `event` is its last. */
export class TaskEnded extends Error {
  /** @param {Event} event */
  constructor(event) {
    const { error_message, reason } = /** @type {any} */ (event.data);
    super(`${event.event_type} ${event.task_id}: ${error_message ?? reason ?? "no reason given"}`);
    this.name = "TaskEnded";
    this.event = event;
  }
}

/** Thrown by `onInput` to decline a question. */
export class InputDeclined extends Error {}

/**
 * `value` as JSON that loses nothing: what JSON.stringify leaves out or changes is refused with its
 * place. A property that is `undefined` is left out; a `Date` and what has `toJSON` is what that
 * returns; a `BigInt` is an integer of up to 64 bits.
 *
 * @param {any} value @param {string} [path] @param {unknown[]} [above]
 * @returns {string}
 */
function encode(value, path = "", above = []) {
  const refuse = (/** @type {unknown} */ found, /** @type {string} */ expected) => {
    const message = `${path || "the command"}: found ${found}; expected ${expected}`;
    throw new AgentsrvError({ code: "invalid_command", message });
  };
  if (typeof value === "bigint") {
    return BigInt.asIntN(64, value) === value ? String(value) : refuse("an integer beyond 64 bits", "at most 64 bits");
  }
  if (value instanceof Date && Number.isNaN(value.getTime())) refuse("an invalid date", "a valid one");
  if (typeof value?.toJSON === "function") value = value.toJSON();
  if (value === null || typeof value === "boolean") return String(value);
  if (typeof value === "string") {
    return /\p{Cs}/u.test(value) ? refuse("half of a surrogate pair", "whole characters") : JSON.stringify(value);
  }
  if (typeof value === "number") {
    if (!Number.isFinite(value)) refuse(value, "a finite number");
    if (!Number.isInteger(value) || Number.isSafeInteger(value)) return JSON.stringify(value);
    if (Math.abs(value) >= 2 ** 63) return value.toExponential(); // which no reader takes for an integer
    refuse(`${value}, which may be rounded`, "a BigInt, or at most 2^53");
  }
  if (typeof value !== "object") refuse(value === undefined ? "undefined" : `a ${typeof value}`, "a JSON value");
  if (above.includes(value)) refuse("a value that contains itself", "one without a cycle");
  if (above.length === MAX_DEPTH) refuse(`more than ${MAX_DEPTH} levels`, "fewer");
  const inside = (/** @type {any} */ one, /** @type {unknown} */ name) => encode(one, path ? `${path}.${name}` : `${name}`, [...above, value]);
  if (Array.isArray(value)) return `[${Array.from(value, inside).join()}]`; // holes are undefined
  const kind = Object.prototype.toString.call(value).slice(8, -1);
  if (kind !== "Object") refuse(`a ${kind}`, "an object of fields, an array or a value with toJSON");
  const fields = Object.entries(value).filter(([, one]) => one !== undefined);
  return `{${fields.map(([name, one]) => `${encode(name, path)}:${inside(one, name)}`).join()}}`;
}

/**
 * A value as JSON, in which the order of an object's fields does not count.
 * @param {any} value @returns {string}
 */
function canonical(value) {
  if (Array.isArray(value)) return `[${value.map(canonical)}]`;
  if (typeof value === "bigint") return String(value);
  if (value === null || typeof value !== "object") return JSON.stringify(value);
  return `{${Object.keys(value).sort().map((name) => `${JSON.stringify(name)}:${canonical(value[name])}`)}}`;
}

/** Whether it is the ciphertext of a secret answer. */
function isSealed(/** @type {any} */ value) {
  return value !== null && typeof value === "object" && Object.keys(value).join() === "sealed";
}

/** Why no further attempt is made after a handshake that was answered with this HTTP status, if so. */
function refusal(/** @type {number} */ status) {
  if (TRANSIENT.has(status)) return undefined;
  if (status === 403) return REFUSED;
  if (status === 401) return "the handshake was answered with HTTP 401; expected no token in it, or a valid one";
  return `the handshake was answered with HTTP ${status}; expected a WebSocket; check the URL`;
}

/** Calls a function of the program; what it throws is reported and disturbs nothing else. */
function tell(/** @type {Function | undefined} */ listener, /** @type {unknown[]} */ ...values) {
  try {
    listener?.(...values);
  } catch (error) {
    (globalThis.reportError ?? console.error)(error);
  }
}

/** 128 random bits in hex; crypto.randomUUID is missing where a page came without encryption. */
export function newKey() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/**
 * A connection that comes back by itself, from the moment that it is made until `close`.
 *
 * Commands wait while there is no connection, and are sent again where it broke before the answer,
 * each in a way that carries it out once; `send` is not. Whoever follows a task is given each of
 * its events once and in order, whatever becomes of connections and servers in between.
 */
export class Client {
  /** @type {WebSocket | undefined} */ #socket;
  #calls = new Map(); // commands without an answer, by their ids
  #feeds = new Map(); // tasks that are followed
  #watchers = new Set(); // of all tasks
  #id = 0;
  #failures = 0;
  #reconnectIn = 0; // seconds, as the server asked for
  #heard = 0; // when the last frame came
  #maxFrame = Infinity; // bytes of a frame that the server takes
  #mark = newKey(); // before integers that are to become a BigInt: nobody else can know it
  #hasRounded = false;
  /** @type {any} */ #timer;

  /** @param {string | URL} url Such as `ws://127.0.0.1:8765`. @param {Options} [options] */
  constructor(url, options = {}) {
    this.url = String(url);
    this.options = { attempts: Infinity, silence: 15_000, ...options };
    /** @type {State} */
    this.state = { name: "connecting" };
    /** Who this client is, where the server asks. @type {string | undefined} */
    this.principal = undefined;
    this.#connect();
  }

  /** Ends the connection; whoever waits fails with `closed`. Tasks on the server go on. */
  close(reason = "the client is closed") {
    if (this.state.name === "closed") return;
    this.#hangUp();
    this.#enter({ name: "closed", reason });
    const error = new AgentsrvError({ code: "closed", message: reason });
    for (const call of this.#calls.values()) call.reject(error);
    this.#calls.clear();
    for (const { listeners } of this.#feeds.values()) for (const one of [...listeners]) one.fail(error);
  }

  /** Takes another token, and connects anew with it. @param {string} token */
  signIn(token) {
    this.options.token = token;
    this.reconnect();
  }

  /** Connects anew and at once: where the network is known to be back. */
  reconnect() {
    this.#checkOpen();
    this.#failures = 0;
    this.#lose();
    this.#connect();
  }

  /**
   * Carries out a command of the protocol, and resolves to its reply.
   *
   * @template {keyof Replies} Name
   * @param {Name} command
   * @param {Omit<Commands[Name], "command" | "id">} [fields]
   * @param {{resend?: boolean, signal?: AbortSignal}} [how] Without `resend` it fails with
   *   `interrupted` where the connection is lost before the answer. `signal` ends the waiting: a
   *   command that was not sent by then is never sent.
   * @returns {Promise<Replies[Name]>} Fails with an `AgentsrvError`; a value that JSON cannot hold, or
   *   a frame above the server's limit, is refused before anything is sent.
   */
  command(command, fields, { resend = true, signal } = {}) {
    return new Promise((resolve, reject) => {
      signal?.throwIfAborted();
      this.#checkOpen();
      const id = ++this.#id;
      const text = encode(Object.assign({ command, id }, fields, { command, id }));
      const abort = () => (this.#calls.delete(id), call.reject(signal?.reason));
      const leave = () => signal?.removeEventListener("abort", abort);
      const call = {
        id, command, text, resend, sent: 0,
        resolve: (/** @type {any} */ reply) => (leave(), resolve(reply)),
        reject: (/** @type {unknown} */ error) => (leave(), reject(error)),
      };
      signal?.addEventListener("abort", abort);
      this.#calls.set(id, call);
      if (this.state.name === "connected") this.#send(call);
    });
  }

  #checkOpen() {
    if (this.state.name !== "closed") return;
    throw new AgentsrvError({ code: "closed", message: this.state.reason });
  }

  /** The names of the commands that wait for an answer, in their order. */
  get pending() {
    return [...this.#calls.values()].map(({ command }) => command);
  }

  /** Makes a task, once: without an `idempotency_key` it is given one. @param {CreateFields} fields */
  create(fields, /** @type {{signal?: AbortSignal}} */ how = {}) {
    return this.command("create", { idempotency_key: newKey(), subscribe: false, ...fields }, how);
  }

  /** Answers a question. @param {string} input_id @param {unknown} value */
  respond(input_id, value) {
    return this.#settle(input_id, "accept", value ?? null);
  }

  /** Declines to answer a question. @param {string} input_id */
  decline(input_id) {
    return this.#settle(input_id, "decline", null);
  }

  /** Gives a running task's agents a message. @param {string} task_id @param {unknown} message */
  send(task_id, message) {
    if (message === undefined) {
      const told = "message: found undefined; expected a JSON value";
      return Promise.reject(new AgentsrvError({ code: "invalid_command", message: told }));
    }
    return this.command("send", { task_id, message }, ONCE);
  }

  /**
   * Calls `take` with each event of a task behind number `after`, in order and once.
   *
   * @param {string} task_id
   * @param {(event: Event) => void} take What it throws ends the following.
   * @param {{after?: number, signal?: AbortSignal}} [how]
   * @returns {Promise<Event | undefined>} The last event; `undefined` where that is number `after`.
   */
  follow(task_id, take, { after = 0, signal } = {}) {
    return new Promise((resolve, reject) => {
      signal?.throwIfAborted();
      this.#checkOpen();
      const feed = this.#feeds.get(task_id) ?? { task_id, head: 0, listeners: new Set() };
      this.#feeds.set(task_id, feed);
      const leave = () => {
        signal?.removeEventListener("abort", abort);
        if (feed.listeners.delete(listener) && !feed.listeners.size) this.#sync(feed);
      };
      const done = (/** @type {Event} */ last) => (leave(), resolve(last));
      const fail = (/** @type {unknown} */ error) => (leave(), reject(error));
      const abort = () => fail(signal?.reason);
      const listener = { seq: after, take, done, fail };
      signal?.addEventListener("abort", abort);
      feed.listeners.add(listener);
      this.#sync(feed);
    });
  }

  /**
   * The same, for `for await`; leaving the loop unsubscribes.
   * @param {string} task_id @param {{after?: number}} [how]
   */
  async *events(task_id, { after = 0 } = {}) {
    /** @type {Event[]} */ const queue = [];
    const leaving = new AbortController();
    let wake = () => {};
    let ended = false;
    const take = (/** @type {Event} */ event) => (queue.push(event), wake());
    const following = this.follow(task_id, take, { after, signal: leaving.signal });
    const end = following.catch(() => {}).then(() => ((ended = true), wake()));
    try {
      while (!ended || queue.length) {
        if (queue.length) yield /** @type {Event} */ (queue.shift());
        else await Promise.race([end, new Promise((done) => (wake = () => done(true)))]);
      }
      await following;
    } finally {
      leaving.abort();
    }
  }

  /**
   * Calls `take` with the life-cycle events of all tasks from now on, and `up` at each connection:
   * then `list` tells what was missed. Returns what ends it.
   * @param {(event: Event) => void} take @param {() => void} up
   */
  followAll(take, up) {
    this.#checkOpen();
    const watcher = { take, up };
    this.#watchers.add(watcher);
    if (this.state.name === "connected") this.#watch();
    return () => this.#watchers.delete(watcher);
  }

  /**
   * Runs a task, and resolves to the data of its `task_completed` with the `task_id`; fails with a
   * `TaskEnded`, or an `AgentsrvError`.
   *
   * @param {string} task_description
   * @param {Partial<CreateFields> & {onEvent?: (event: Event) => void, signal?: AbortSignal,
   *   onInput?: (question: import("./protocol.d.ts").InputRequired, refusal?: AgentsrvError) =>
   *   unknown}} [options] `onInput` returns the answer or a promise of it, or throws `InputDeclined`;
   *   it is called again with the server's refusal of an answer. `signal` ends the waiting; a task
   *   that exists by then continues.
   */
  async run(task_description, { onEvent, onInput, signal, ...fields } = {}) {
    const { task_id } = await this.create({ ...fields, task_description, execute: true }, { signal });
    const open = new Set(); // questions that wait for an answer
    const last = await new Promise((resolve, reject) => {
      const take = (/** @type {Event} */ event) => {
        onEvent?.(event);
        if (event.event_type === "input_received") open.delete(event.data.input_id);
        if (event.event_type !== "input_required" || !onInput) return;
        open.add(event.data.input_id);
        this.#answerQuestion(event.data, onInput, open).catch(reject);
      };
      const end = () => open.clear();
      this.follow(task_id, take, { signal }).finally(end).then(resolve, reject);
    });
    if (last.event_type !== "task_completed") throw new TaskEnded(last);
    return { task_id, .../** @type {import("./protocol.d.ts").TaskCompleted} */ (last.data) };
  }

  /**
   * Asks for the answer to a question until the server takes one, or the question is closed.
   * @param {import("./protocol.d.ts").InputRequired} question @param {Function} onInput
   * @param {Set<string>} open
   */
  async #answerQuestion(question, onInput, open) {
    const { input_id } = question;
    for (let refusal; open.has(input_id); ) {
      /** @type {() => Promise<unknown>} */ let settle;
      try {
        const value = await onInput(question, refusal);
        settle = () => this.respond(input_id, value);
      } catch (error) {
        if (!(error instanceof InputDeclined)) throw error;
        settle = () => this.decline(input_id);
      }
      while (open.has(input_id)) {
        try {
          await settle();
          return;
        } catch (error) {
          const { code, retryable, retryAfter = 1 } = /** @type {AgentsrvError} */ (error);
          if (SETTLED.has(code)) return;
          if (code === "invalid_input") {
            refusal = error;
            break;
          }
          if (!retryable || code === "interrupted") throw error;
          await new Promise((done) => setTimeout(done, retryAfter * 1000));
        }
      }
    }
  }

  // The connection.

  #connect() {
    const Socket = this.options.WebSocket ?? globalThis.WebSocket;
    if (!Socket) throw new Error("there is no WebSocket here; expected the option WebSocket, or Node 22");
    this.#enter({ name: "connecting" });
    const socket = (this.#socket = new Socket(this.url, [PROTOCOL]));
    this.#timer = setTimeout(() => this.#retry("no answer in time"), OPEN_TIMEOUT);
    socket.onmessage = ({ data }) => this.#receive(data);
    let isOpen = false, status = 0; // of HTTP, where the class tells it
    socket.onopen = () => (isOpen = true);
    socket.onerror = (/** @type {any} */ { message }) => (status = Number(STATUS.exec(message)?.[1] ?? 0));
    socket.onclose = ({ code, reason }) => {
      const why = status ? refusal(status) : undefined;
      if (why) this.close(why);
      else if (code === UNAUTHENTICATED) this.#refuse(reason);
      else if (RECONNECT_AFTER.has(code)) {
        this.#retry(reason || (status ? `HTTP ${status}` : "no connection"));
        isOpen || status || this.#askWhy();
      }
      else this.close(`the server closed the connection for good (${code} ${reason})`);
    };
  }

  /**
   * Stops trying if the page's origin is refused. A browser does not tell a page the status of the
   * handshake, so the page asks with a request; one with another status says nothing of WebSockets.
   */
  async #askWhy() {
    try {
      if ((await fetch(this.url.replace(/^ws/i, "http"))).status === 403) this.close(REFUSED);
    } catch {} // no server, or no refusal
  }

  /** @param {State} state */
  #enter(state) {
    this.state = state;
    tell(this.options.onState, state);
  }

  /** Lets go of the socket without waiting for it: it may be dead. */
  #hangUp() {
    clearTimeout(this.#timer);
    const socket = this.#socket;
    this.#socket = undefined;
    if (!socket) return;
    socket.onmessage = socket.onclose = null;
    socket.onerror = () => {};
    socket.close();
  }

  #lose() {
    this.#hangUp();
    for (const [id, call] of this.#calls) {
      if (!call.sent || call.resend) continue;
      this.#calls.delete(id);
      const message = "the connection was lost before the answer";
      call.reject(new AgentsrvError({ code: "interrupted", message, retryable: true }));
    }
  }

  #retry(/** @type {string} */ reason) {
    this.#lose();
    if (++this.#failures > this.options.attempts) return this.close(`no server: ${reason}`);
    const ceiling = Math.min(MAX_BACKOFF, BACKOFF * 2 ** this.#failures);
    const wait = this.#reconnectIn * 1000 + Math.random() * ceiling;
    this.#reconnectIn = 0;
    this.#timer = setTimeout(() => this.#connect(), wait);
    this.#enter({ name: "waiting", reason, retryAt: Date.now() + wait });
  }

  #refuse(/** @type {string} */ reason) {
    this.#lose();
    this.#enter({ name: "unauthenticated", reason });
  }

  #receive(/** @type {string} */ text) {
    this.#heard = Date.now();
    tell(this.options.onFrame, "in", text);
    let frame;
    try {
      frame = this.#decode(text);
      frame.type;
    } catch (error) {
      return this.close(`the server sent a frame that cannot be read: ${error}`);
    }
    if (frame.type === "hello") this.#greet(frame);
    else if (frame.type === "event") this.#event(frame);
    else if (frame.type === "goaway") this.#reconnectIn = frame.reconnect_in;
    else if (frame.type === "reply" || frame.type === "error") this.#answer(frame);
  }

  /** Parses a frame; keeps integers that a number cannot hold, or reports the first one. */
  #decode(/** @type {string} */ text) {
    if (!/\d{16}/.test(text)) return JSON.parse(text);
    const isUnsafe = (/** @type {string} */ token) => /^-?\d+$/.test(token) && !Number.isSafeInteger(Number(token));
    if (!this.options.bigints) {
      const found = this.#hasRounded ? undefined : text.match(TOKENS)?.find(isUnsafe);
      if (found) {
        this.#hasRounded = true;
        console.warn(`agentsrv: the integer ${found} is rounded; the option bigints keeps such integers`);
      }
      return JSON.parse(text);
    }
    const marked = text.replace(TOKENS, (token) => (isUnsafe(token) ? `"${this.#mark}${token}"` : token));
    const revive = (/** @type {string} */ _, /** @type {unknown} */ value) =>
      typeof value === "string" && value.startsWith(this.#mark) ? BigInt(value.slice(this.#mark.length)) : value;
    return JSON.parse(marked, revive);
  }

  #greet(/** @type {import("./protocol.d.ts").HelloFrame} */ { protocol, limits }) {
    if (protocol !== PROTOCOL) return this.close(`the server speaks ${protocol}`);
    this.#maxFrame = Number(limits.max_frame ?? Infinity);
    if (limits.auth_timeout === undefined) return this.#ready();
    const { token } = this.options;
    if (!token) return this.#refuse("");
    const text = JSON.stringify({ command: "auth", id: 0, token });
    const resolve = (/** @type {Replies["auth"]} */ { principal }) => {
      this.principal = principal;
      this.#ready();
    };
    const reject = (/** @type {AgentsrvError} */ { code, message }) => {
      if (code === "unauthenticated") this.#refuse(message);
      else if (code !== "interrupted" && code !== "closed") this.#retry(message);
    };
    this.#calls.set(0, { id: 0, command: "auth", text, resend: false, sent: 1, resolve, reject });
    this.#socket?.send(text);
    tell(this.options.onFrame, "out", text.replace(JSON.stringify(token), '"…"'));
  }

  #ready() {
    clearTimeout(this.#timer);
    this.#listen();
    this.#enter({ name: "connected" });
    for (const call of this.#calls.values()) this.#send(call);
    for (const feed of this.#feeds.values()) this.#sync(feed);
    if (this.#watchers.size) this.#watch();
  }

  /** Asks for a sign of life where there was none: a browser does not tell of a dead network. */
  #listen() {
    const { silence } = this.options;
    this.#timer = setTimeout(() => {
      const quiet = Date.now() - this.#heard;
      if (quiet >= 2 * silence) return this.#retry("the server is silent");
      if (quiet >= silence) this.command("ping", {}, ONCE).catch(() => {});
      this.#listen();
    }, silence);
  }

  #send(/** @type {any} */ call) {
    const size = call.text.length * 3 < this.#maxFrame ? 0 : new TextEncoder().encode(call.text).length;
    if (size > this.#maxFrame) {
      this.#calls.delete(call.id);
      const message = `the command has ${size} bytes; the server takes ${this.#maxFrame}`;
      return call.reject(new AgentsrvError({ code: "too_large", message }));
    }
    call.sent += 1;
    this.#socket?.send(call.text);
    tell(this.options.onFrame, "out", call.text);
  }

  #answer(/** @type {any} */ frame) {
    if (frame.type === "error" && (frame.id ?? null) === null && frame.task_id) {
      const feed = this.#feeds.get(frame.task_id); // its subscription has ended
      if (feed) feed.isOn = false;
      for (const one of [...(feed?.listeners ?? [])]) one.fail(new AgentsrvError(frame));
      return;
    }
    // An error without an id is about a frame that the server could not read. It answers the commands
    // of a connection in their order, so that was the oldest.
    const isUnnamed = frame.type === "error" && (frame.id ?? null) === null;
    const oldest = () => [...this.#calls.values()].find(({ sent }) => sent);
    const call = isUnnamed ? oldest() : this.#calls.get(frame.id);
    if (!call) return;
    this.#failures = 0;
    this.#calls.delete(call.id);
    if (frame.type === "reply") return call.resolve(frame);
    const error = new AgentsrvError(frame);
    error.resent = call.sent > 1;
    call.reject(error);
  }

  /**
   * Answers a question. A conflict after a lost reply counts as that reply if the log has the same
   * answer; a secret answer is a ciphertext there and cannot be compared.
   * @param {string} input_id @param {"accept" | "decline"} action @param {unknown} value
   * @returns {Promise<Omit<Replies["respond"], "type" | "command" | "id">>}
   */
  async #settle(input_id, action, value) {
    try {
      return await this.command("respond", action === "accept" ? { input_id, value } : { input_id, action });
    } catch (error) {
      const { code, resent } = /** @type {AgentsrvError} */ (error);
      if (code !== "conflict" || !resent) throw error;
      const settled = await this.#settled(input_id);
      const same = () => canonical(settled?.value) === canonical(this.#decode(encode(value)));
      if (settled?.action !== action || !(isSealed(settled.value) || same())) throw error;
      return { task_id: input_id.split("/")[0], input_id };
    }
  }

  /** How a question was settled, if it was by now. */
  async #settled(/** @type {string} */ input_id) {
    const [task_id] = input_id.split("/");
    const { seq } = await this.command("status", { task_id });
    for await (const event of this.events(task_id)) {
      if (event.event_type === "input_received" && event.data.input_id === input_id) return event.data;
      if (event.seq >= seq) break;
    }
    return undefined;
  }

  // Subscriptions.

  #event(/** @type {Event} */ event) {
    const feed = this.#feeds.get(event.task_id);
    const isNew = !feed || event.seq > feed.head; // and not replayed for who came late
    const isLast = TERMINAL.has(event.event_type);
    if (feed && isNew) feed.head = event.seq;
    if (feed && isLast) feed.isOn = false; // it ended by itself
    if (isNew && /^(task|input)_/.test(event.event_type)) for (const one of this.#watchers) tell(one.take, event);
    for (const listener of [...(feed?.listeners ?? [])]) {
      if (event.seq !== listener.seq + 1) continue; // it has it, or will be sent those before
      listener.seq = event.seq;
      try {
        listener.take(event);
        if (isLast) listener.done(event);
      } catch (error) {
        listener.fail(error);
      }
    }
  }

  /** Brings a subscription to what its listeners need, one command after the other. */
  async #sync(/** @type {any} */ feed) {
    feed.isStale = true;
    if (feed.isBusy) return;
    feed.isBusy = true;
    while (feed.isStale && this.state.name === "connected") {
      feed.isStale = false;
      try {
        if (feed.listeners.size) {
          const after_seq = Math.min(...[...feed.listeners].map((one) => one.seq));
          feed.isOn = true;
          const asked = this.command("subscribe", { task_id: feed.task_id, after_seq }, ONCE);
          const { seq = 0, status = "" } = await asked;
          feed.head = Math.max(feed.head, seq);
          for (const one of [...feed.listeners]) if (ENDED.has(status) && one.seq >= seq) one.done();
        } else if (feed.isOn) {
          feed.isOn = false;
          await this.command("unsubscribe", { task_id: feed.task_id }, ONCE);
        }
      } catch (error) {
        const { code, retryable, retryAfter = 1 } = /** @type {AgentsrvError} */ (error);
        if (code === "interrupted" || code === "closed") break;
        feed.isOn = false;
        if (retryable) setTimeout(() => this.#sync(feed), retryAfter * 1000);
        else for (const one of [...feed.listeners]) one.fail(error);
      }
    }
    feed.isBusy = false;
    if (!feed.listeners.size) this.#feeds.delete(feed.task_id);
  }

  #watch() {
    const asked = this.command("subscribe", { all: true }, ONCE);
    asked.then(() => this.#watchers.forEach((one) => tell(one.up))).catch(() => {});
  }
}
