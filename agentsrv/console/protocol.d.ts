// Made by `agentsrv schema --typescript`; do not edit.

/** A registered agent. */
export interface AgentInfo {
  name: string;
  description: string;
  /** JSON Schema of its parameters. */
  params: Record<string, unknown>;
}

/** List the agents and their parameters. */
export interface Agents {
  /** The reply or error repeats it. Commands that have an id are carried out concurrently. */
  id?: string | number | null;
  command: "agents";
}

/** The registered agents. */
export interface AgentsReply {
  type: "reply";
  command: "agents";
  /** The id of the command; null if it had none. */
  id: string | number | null;
  agents: Array<AgentInfo>;
}

/** Authenticate with an API key or a JSON Web Token, which is never shown again. */
export interface Auth {
  /** The reply or error repeats it. Commands that have an id are carried out concurrently. */
  id?: string | number | null;
  command: "auth";
  token: string;
}

/** The principal of the connection. */
export interface AuthReply {
  type: "reply";
  command: "auth";
  /** The id of the command; null if it had none. */
  id: string | number | null;
  principal: string;
}

/** Cancel a task in any status. */
export interface Cancel {
  /** The reply or error repeats it. Commands that have an id are carried out concurrently. */
  id?: string | number | null;
  command: "cancel";
  task_id?: string | null;
  /** The key of the ``create``, instead of the task's id. */
  idempotency_key?: string | null;
  /** Recorded in the task's events. */
  reason?: string | null;
  /** Seconds that running steps have to end; by default the server's setting. */
  grace?: number | null;
}

/** The status of the task after the cancellation. */
export interface CancelReply {
  type: "reply";
  command: "cancel";
  /** The id of the command; null if it had none. */
  id: string | number | null;
  task_id: string;
  status: "pending" | "queued" | "running" | "input_required" | "cancelling" | "completed" | "failed" | "cancelled";
  /** Whether it had ended, or was being cancelled, before. */
  already: boolean;
}

/** A subscription has delivered every event that was logged when it began. */
export interface CaughtUpFrame {
  type: "caught_up";
  task_id: string;
  seq: number;
}

/** Create a task; with ``execute`` also put it into the queue. */
export interface Create {
  /** The reply or error repeats it. Commands that have an id are carried out concurrently. */
  id?: string | number | null;
  command: "create";
  /** The work to do. */
  task_description: string;
  /** This agent does the work, as a plan of one step. */
  agent?: string | null;
  /** A plan of the client's own, instead of the server's planner. */
  plan?: ExecutionPlan | null;
  /** Values for the agents' parameters. */
  params?: Record<string, JsonValue>;
  /** The same key and fields within 24 hours return the same task. */
  idempotency_key?: string | null;
  /** Also put the task into the queue. */
  execute?: boolean;
  /** With ``execute``: subscribe this connection from the first event. */
  subscribe?: boolean;
  /** Seconds after it was queued at which the task fails. */
  deadline?: number | null;
  /** Whether the task is cancelled when the connection that executed it ends. */
  on_disconnect?: "continue" | "cancel";
  /** A failed or cancelled task whose plan and completed steps are reused. */
  resume_from?: string | null;
  /** Stored in ``task_created``, not interpreted. */
  metadata?: Record<string, string>;
  /** The client's span, in the format of W3C Trace Context; the task is traced as its part. */
  traceparent?: string | null;
}

/** The task, and whether it existed before. */
export interface CreateReply {
  type: "reply";
  command: "create";
  /** The id of the command; null if it had none. */
  id: string | number | null;
  task_id: string;
  status: "pending" | "queued" | "running" | "input_required" | "cancelling" | "completed" | "failed" | "cancelled";
  /** The number of the task's last event. */
  seq: number;
  /** Whether the idempotency key had been used before. */
  replayed: boolean;
}

/** One invalid field of a command. */
export interface Detail {
  field: string;
  reason: string;
}

/** A command was refused, or a subscription has ended; the connection stays open. */
export interface ErrorFrame {
  type: "error";
  command: string | null;
  id: string | number | null;
  /** The task whose subscription has ended. */
  task_id?: string;
  code: "invalid_json" | "invalid_command" | "unknown_command" | "unauthenticated" | "not_found" | "invalid_state" | "conflict" | "invalid_input" | "seq_ahead" | "too_large" | "rate_limited" | "overloaded" | "shutting_down" | "unavailable" | "internal";
  message: string;
  retryable: boolean;
  /** Seconds. */
  retry_after?: number;
  details?: Array<Detail>;
  example?: Record<string, unknown>;
}

/** Run a pending task. */
export interface Execute {
  /** The reply or error repeats it. Commands that have an id are carried out concurrently. */
  id?: string | number | null;
  command: "execute";
  /** The id from the reply to create, or its first 4 or more characters if no other task's id begins with them. */
  task_id: string;
  /** Subscribe this connection from the first event. */
  subscribe?: boolean;
}

/** The position of a task: its status and its last event. */
export interface ExecuteReply {
  type: "reply";
  command: "execute";
  /** The id of the command; null if it had none. */
  id: string | number | null;
  task_id: string;
  status: "pending" | "queued" | "running" | "input_required" | "cancelling" | "completed" | "failed" | "cancelled";
  /** The number of the task's last event. */
  seq: number;
}

/** The steps of a task: 1 to 100, with unique ids and acyclic dependencies. */
export interface ExecutionPlan {
  steps: Array<Step>;
}

/** The server is about to close the connection. */
export interface GoawayFrame {
  type: "goaway";
  reason: string;
  /** Seconds. */
  reconnect_in: number;
}

/** The first frame of a connection. */
export interface HelloFrame {
  type: "hello";
  protocol: string;
  server: Record<string, string>;
  connection_id: string;
  authenticated: boolean;
  limits: Record<string, unknown>;
  commands: Array<string>;
}

/** List the commands and the command lines. */
export interface Help {
  /** The reply or error repeats it. Commands that have an id are carried out concurrently. */
  id?: string | number | null;
  command: "help";
}

/** An example of each command, and the command lines. */
export interface HelpReply {
  type: "reply";
  command: "help";
  /** The id of the command; null if it had none. */
  id: string | number | null;
  commands: Record<string, Record<string, unknown>>;
  lines: Record<string, string>;
}

/** A question was answered (``accept``), declined (``decline``), or has expired (``expire``).

With ``expire``, ``value`` is the question's default, or ``None`` if it has none. */
export interface InputReceived {
  input_id: string;
  step_id: string;
  action: string;
  value: unknown;
  by: string;
}

/** A question was answered (`accept`), declined (`decline`), or has expired (`expire`). With `expire`, `value` is the question's default, or `None` if it has none. */
export interface InputReceivedEvent {
  type: "event";
  event_type: "input_received";
  task_id: string;
  /** The number of the event in its task's log, from 1 without gaps. */
  seq: number;
  timestamp: string;
  data: InputReceived;
}

/** An agent asks the client a question; ``schema`` is the JSON Schema of its answer. */
export interface InputRequired {
  input_id: string;
  step_id: string;
  attempt: number;
  prompt: string;
  schema: Record<string, unknown>;
  options: Array<unknown> | null;
  default: unknown;
  expires_at: string | null;
}

/** An agent asks the client a question; `schema` is the JSON Schema of its answer. */
export interface InputRequiredEvent {
  type: "event";
  event_type: "input_required";
  task_id: string;
  /** The number of the event in its task's log, from 1 without gaps. */
  seq: number;
  timestamp: string;
  data: InputRequired;
}

/** Any JSON value. */
export type JsonValue = unknown;

/** List the tasks of the principal, the newest first. */
export interface List {
  /** The reply or error repeats it. Commands that have an id are carried out concurrently. */
  id?: string | number | null;
  command: "list";
  /** Only tasks with this status. */
  status?: TaskStatus | null;
  /** Tasks on a page. */
  limit?: number;
  /** ``next_cursor`` of the previous page. */
  cursor?: string | null;
}

/** A page of tasks, the newest first. */
export interface ListReply {
  type: "reply";
  command: "list";
  /** The id of the command; null if it had none. */
  id: string | number | null;
  tasks: Array<TaskRow>;
  /** Number of all matching tasks. */
  total: number;
  /** The `cursor` of the next page. */
  next_cursor: string | null;
}

/** The client sent the running agents a message. */
export interface MessageReceived {
  message: unknown;
  by: string;
}

/** The client sent the running agents a message. */
export interface MessageReceivedEvent {
  type: "event";
  event_type: "message_received";
  task_id: string;
  /** The number of the event in its task's log, from 1 without gaps. */
  seq: number;
  timestamp: string;
  data: MessageReceived;
}

/** A piece of text; ``offset`` is the number of characters of this attempt before it. */
export interface PartialOutput {
  step_id: string;
  attempt: number;
  offset: number;
  output: string;
}

/** A piece of text; `offset` is the number of characters of this attempt before it. */
export interface PartialOutputEvent {
  type: "event";
  event_type: "partial_output";
  task_id: string;
  /** The number of the event in its task's log, from 1 without gaps. */
  seq: number;
  timestamp: string;
  data: PartialOutput;
}

/** Check that the connection and the server work. */
export interface Ping {
  /** The reply or error repeats it. Commands that have an id are carried out concurrently. */
  id?: string | number | null;
  command: "ping";
}

/** A reply without fields: the command was carried out. */
export interface PingReply {
  type: "reply";
  command: "ping";
  /** The id of the command; null if it had none. */
  id: string | number | null;
}

/** The task's steps are fixed; ``planned_by`` and ``reason`` are those of `ExplainedPlan`. */
export interface PlanCreated {
  steps: Array<Record<string, unknown>>;
  planned_by?: string | null;
  reason?: string | null;
}

/** The task's steps are fixed; `planned_by` and `reason` are those of `ExplainedPlan`. */
export interface PlanCreatedEvent {
  type: "event";
  event_type: "plan_created";
  task_id: string;
  /** The number of the event in its task's log, from 1 without gaps. */
  seq: number;
  timestamp: string;
  data: PlanCreated;
}

/** Answer an agent's question, or decline to. */
export interface Respond {
  /** The reply or error repeats it. Commands that have an id are carried out concurrently. */
  id?: string | number | null;
  command: "respond";
  /** The id from input_required. */
  input_id: string;
  /** The answer, which the question's schema validates. */
  value?: JsonValue;
  /** ``decline`` takes no value. */
  action?: "accept" | "decline";
}

/** The question that was answered, and its task. */
export interface RespondReply {
  type: "reply";
  command: "respond";
  /** The id of the command; null if it had none. */
  id: string | number | null;
  task_id: string;
  input_id: string;
}

/** Send a message to the agents of a running task. */
export interface Send {
  /** The reply or error repeats it. Commands that have an id are carried out concurrently. */
  id?: string | number | null;
  command: "send";
  /** The id from the reply to create, or its first 4 or more characters if no other task's id begins with them. */
  task_id: string;
  /** Usually text. */
  message: JsonValue;
}

/** The message's number in the task's log. */
export interface SendReply {
  type: "reply";
  command: "send";
  /** The id of the command; null if it had none. */
  id: string | number | null;
  task_id: string;
  seq: number;
}

/** Return the state of a task. */
export interface Status {
  /** The reply or error repeats it. Commands that have an id are carried out concurrently. */
  id?: string | number | null;
  command: "status";
  /** The id from the reply to create, or its first 4 or more characters if no other task's id begins with them. */
  task_id: string;
}

/** The whole state of a task. */
export interface StatusReply {
  type: "reply";
  command: "status";
  /** The id of the command; null if it had none. */
  id: string | number | null;
  task_id: string;
  status: "pending" | "queued" | "running" | "input_required" | "cancelling" | "completed" | "failed" | "cancelled";
  user_input: string;
  final_output: string | null;
  partial_output: string | null;
  error_message: string | null;
  degraded: boolean;
  created_at: string;
  updated_at: string;
  /** The number of the task's last event. */
  seq: number;
  steps: Array<StepSnapshot>;
  /** Open questions: the data of input_required. */
  inputs: Array<Record<string, unknown>>;
}

/** One unit of work of one agent, which runs after the steps that it depends on. */
export interface Step {
  step_id: string;
  agent: string;
  description?: string;
  depends_on?: Array<string>;
  /** The agent's input. */
  input?: JsonValue;
  /** For the agent's parameters; they replace the task's of the same names. */
  params?: Record<string, JsonValue>;
  /** By default the agent's. */
  max_retries?: number | null;
  /** Seconds an attempt may take; by default the agent's. */
  timeout?: number | null;
}

/** The step was in progress when the task was stopped; its text is kept. */
export interface StepCancelled {
  step_id: string;
  attempt: number;
  partial_output: string;
}

/** The step was in progress when the task was stopped; its text is kept. */
export interface StepCancelledEvent {
  type: "event";
  event_type: "step_cancelled";
  task_id: string;
  /** The number of the event in its task's log, from 1 without gaps. */
  seq: number;
  timestamp: string;
  data: StepCancelled;
}

/** The step's result is journaled; the step never runs again. ``duration`` in seconds. */
export interface StepCompleted {
  step_id: string;
  attempt: number;
  status: string;
  result: unknown;
  cached: boolean;
  duration: number;
}

/** The step's result is journaled; the step never runs again. `duration` in seconds. */
export interface StepCompletedEvent {
  type: "event";
  event_type: "step_completed";
  task_id: string;
  /** The number of the event in its task's log, from 1 without gaps. */
  seq: number;
  timestamp: string;
  data: StepCompleted;
}

/** The last attempt failed; ``degraded`` if the plan continues without the step. */
export interface StepFailed {
  step_id: string;
  attempt: number;
  error_message: string;
  retry_count: number;
  partial_output: string;
  degraded: boolean;
  traceback?: Array<TracebackFrame> | null;
}

/** The last attempt failed; `degraded` if the plan continues without the step. */
export interface StepFailedEvent {
  type: "event";
  event_type: "step_failed";
  task_id: string;
  /** The number of the event in its task's log, from 1 without gaps. */
  seq: number;
  timestamp: string;
  data: StepFailed;
}

/** The server's process crashed while code of the attempt ran.

``losses`` counts such crashes since the step last made progress. If ``suspected``, the step
may be their cause; a node runs one suspected step at a time. ``step_id`` is ``None`` if the
crash occurred while the plan was made. */
export interface StepLost {
  step_id: string | null;
  attempt: number;
  losses: number;
  suspected: boolean;
}

/** The server's process crashed while code of the attempt ran. `losses` counts such crashes since the step last made progress. If `suspected`, the step may be their cause; a node runs one suspected step at a time. `step_id` is `None` if the crash occurred while the plan was made. */
export interface StepLostEvent {
  type: "event";
  event_type: "step_lost";
  task_id: string;
  /** The number of the event in its task's log, from 1 without gaps. */
  seq: number;
  timestamp: string;
  data: StepLost;
}

/** The agent reports its progress.

Values are corrected, not refused: ``done`` or ``total`` is ``None`` if it is not a finite
number, ``total`` also if it is not positive; ``done`` is limited to 0 … ``total``, and the
message to 2,000 characters. */
export interface StepProgress {
  step_id: string;
  attempt: number;
  done: number | null;
  total: number | null;
  message: string;
}

/** The agent reports its progress. Values are corrected, not refused: `done` or `total` is `None` if it is not a finite number, `total` also if it is not positive; `done` is limited to 0 … `total`, and the message to 2,000 characters. */
export interface StepProgressEvent {
  type: "event";
  event_type: "step_progress";
  task_id: string;
  /** The number of the event in its task's log, from 1 without gaps. */
  seq: number;
  timestamp: string;
  data: StepProgress;
}

/** An attempt failed; another follows in ``retry_in`` seconds. */
export interface StepRetrying {
  step_id: string;
  attempt: number;
  next_attempt: number;
  retry_in: number;
  error_message: string;
  retry_count: number;
  reason: "error" | "timeout" | "recovered";
  traceback?: Array<TracebackFrame> | null;
}

/** An attempt failed; another follows in `retry_in` seconds. */
export interface StepRetryingEvent {
  type: "event";
  event_type: "step_retrying";
  task_id: string;
  /** The number of the event in its task's log, from 1 without gaps. */
  seq: number;
  timestamp: string;
  data: StepRetrying;
}

/** The step will not run. */
export interface StepSkipped {
  step_id: string;
  reason: string;
}

/** The step will not run. */
export interface StepSkippedEvent {
  type: "event";
  event_type: "step_skipped";
  task_id: string;
  /** The number of the event in its task's log, from 1 without gaps. */
  seq: number;
  timestamp: string;
  data: StepSkipped;
}

/** The state of one step. */
export interface StepSnapshot {
  step_id: string;
  agent: string;
  description: string;
  depends_on: Array<string>;
  status: "pending" | "running" | "input_required" | "retrying" | "completed" | "failed" | "cancelled" | "skipped";
  /** Number of the attempt; 0 before the first. */
  attempt: number;
  /** The text of the current or last attempt. */
  output: string;
  error_message: string | null;
}

/** An attempt of a step begins; attempts count from 1. */
export interface StepStarted {
  step_id: string;
  attempt: number;
  agent: string;
  description: string;
}

/** An attempt of a step begins; attempts count from 1. */
export interface StepStartedEvent {
  type: "event";
  event_type: "step_started";
  task_id: string;
  /** The number of the event in its task's log, from 1 without gaps. */
  seq: number;
  timestamp: string;
  data: StepStarted;
}

/** Receive the events of a task that follow ``after_seq`` (0: all of them).

With ``all`` instead of a task: the life-cycle events of all own tasks, from now on. */
export interface Subscribe {
  /** The reply or error repeats it. Commands that have an id are carried out concurrently. */
  id?: string | number | null;
  command: "subscribe";
  task_id?: string | null;
  /** The number of the last event that the client has received. */
  after_seq?: number;
  /** Instead of a task: the life-cycle events of all own tasks. */
  all?: boolean;
}

/** The task; empty for a subscription to all tasks. */
export interface SubscribeReply {
  type: "reply";
  command: "subscribe";
  /** The id of the command; null if it had none. */
  id: string | number | null;
  task_id?: string;
  status?: "pending" | "queued" | "running" | "input_required" | "cancelling" | "completed" | "failed" | "cancelled";
  /** The number of the task's last event. */
  seq?: number;
}

/** The task was cancelled; ``stopped`` is false if a step still runs, fenced off. */
export interface TaskCancelled {
  status: string;
  reason: string | null;
  by: string;
  stopped: boolean;
  partial_output: string;
}

/** The task was cancelled; `stopped` is false if a step still runs, fenced off. */
export interface TaskCancelledEvent {
  type: "event";
  event_type: "task_cancelled";
  task_id: string;
  /** The number of the event in its task's log, from 1 without gaps. */
  seq: number;
  timestamp: string;
  data: TaskCancelled;
}

/** A cancellation is decided; running steps have ``grace`` seconds to end. */
export interface TaskCancelling {
  reason: string | null;
  by: string;
  grace: number;
}

/** A cancellation is decided; running steps have `grace` seconds to end. */
export interface TaskCancellingEvent {
  type: "event";
  event_type: "task_cancelling";
  task_id: string;
  /** The number of the event in its task's log, from 1 without gaps. */
  seq: number;
  timestamp: string;
  data: TaskCancelling;
}

/** The task ended with an output. ``duration`` in seconds since it first started. */
export interface TaskCompleted {
  status: string;
  final_output: string;
  degraded: boolean;
  missing_steps: Array<string>;
  duration: number;
}

/** The task ended with an output. `duration` in seconds since it first started. */
export interface TaskCompletedEvent {
  type: "event";
  event_type: "task_completed";
  task_id: string;
  /** The number of the event in its task's log, from 1 without gaps. */
  seq: number;
  timestamp: string;
  data: TaskCompleted;
}

/** The task is in the log; it does not run yet.

``traceparent`` is the client's span: the task is traced as part of it. */
export interface TaskCreated {
  task_description: string;
  agent: string | null;
  params: Record<string, unknown>;
  metadata: Record<string, string>;
  traceparent?: string | null;
}

/** The task is in the log; it does not run yet. `traceparent` is the client's span: the task is traced as part of it. */
export interface TaskCreatedEvent {
  type: "event";
  event_type: "task_created";
  task_id: string;
  /** The number of the event in its task's log, from 1 without gaps. */
  seq: number;
  timestamp: string;
  data: TaskCreated;
}

/** The task ended without its output; ``partial_output`` is the part that exists. */
export interface TaskFailed {
  status: string;
  error_message: string;
  failed_step: string | null;
  retry_count: number;
  partial_output: string;
}

/** The task ended without its output; `partial_output` is the part that exists. */
export interface TaskFailedEvent {
  type: "event";
  event_type: "task_failed";
  task_id: string;
  /** The number of the event in its task's log, from 1 without gaps. */
  seq: number;
  timestamp: string;
  data: TaskFailed;
}

/** The task waits for a free slot; ``position`` counts the principal's waiting tasks from 1. */
export interface TaskQueued {
  position: number;
}

/** The task waits for a free slot; `position` counts the principal's waiting tasks from 1. */
export interface TaskQueuedEvent {
  type: "event";
  event_type: "task_queued";
  task_id: string;
  /** The number of the event in its task's log, from 1 without gaps. */
  seq: number;
  timestamp: string;
  data: TaskQueued;
}

/** After a crash or a takeover ``node`` continues the task after ``completed_steps``.

``traceparent`` is the span of its run, where the server is traced. */
export interface TaskRecovered {
  node: string;
  completed_steps: Array<string>;
  traceparent?: string | null;
}

/** After a crash or a takeover `node` continues the task after `completed_steps`. `traceparent` is the span of its run, where the server is traced. */
export interface TaskRecoveredEvent {
  type: "event";
  event_type: "task_recovered";
  task_id: string;
  /** The number of the event in its task's log, from 1 without gaps. */
  seq: number;
  timestamp: string;
  data: TaskRecovered;
}

/** One row of a list. */
export interface TaskRow {
  task_id: string;
  status: "pending" | "queued" | "running" | "input_required" | "cancelling" | "completed" | "failed" | "cancelled";
  user_input: string;
  created_at: string;
}

/** A worker of ``node`` holds the task's lease and begins.

``traceparent`` is the span of its run, where the server is traced. */
export interface TaskStarted {
  node: string;
  traceparent?: string | null;
}

/** A worker of `node` holds the task's lease and begins. `traceparent` is the span of its run, where the server is traced. */
export interface TaskStartedEvent {
  type: "event";
  event_type: "task_started";
  task_id: string;
  /** The number of the event in its task's log, from 1 without gaps. */
  seq: number;
  timestamp: string;
  data: TaskStarted;
}

/** The status of a task, between its creation and its one terminal event. */
export type TaskStatus = "pending" | "queued" | "running" | "input_required" | "cancelling" | "completed" | "failed" | "cancelled";

/** One frame of an agent's error; ``file`` is relative to the application.

``own`` tells the application's lines from those of libraries. Of a group of errors, the last
frame of each inner error has ``error``, its description. */
export interface TracebackFrame {
  file: string;
  line: number;
  function: string;
  code: string;
  own: boolean;
  error?: string;
}

/** End the subscription to a task, or to all tasks. */
export interface Unsubscribe {
  /** The reply or error repeats it. Commands that have an id are carried out concurrently. */
  id?: string | number | null;
  command: "unsubscribe";
  task_id?: string | null;
  /** End the subscription to all tasks; those to single tasks continue. */
  all?: boolean;
}

/** A reply without fields: the command was carried out. */
export interface UnsubscribeReply {
  type: "reply";
  command: "unsubscribe";
  /** The id of the command; null if it had none. */
  id: string | number | null;
}

/** The commands, by name. */
export interface Commands {
  create: Create;
  execute: Execute;
  status: Status;
  list: List;
  cancel: Cancel;
  subscribe: Subscribe;
  unsubscribe: Unsubscribe;
  respond: Respond;
  send: Send;
  agents: Agents;
  auth: Auth;
  ping: Ping;
  help: Help;
}

/** The replies, by the name of the command. */
export interface Replies {
  create: CreateReply;
  execute: ExecuteReply;
  status: StatusReply;
  list: ListReply;
  cancel: CancelReply;
  subscribe: SubscribeReply;
  unsubscribe: UnsubscribeReply;
  respond: RespondReply;
  send: SendReply;
  agents: AgentsReply;
  auth: AuthReply;
  ping: PingReply;
  help: HelpReply;
}

/** The events of tasks. */
export type Event =
  | TaskCreatedEvent
  | TaskQueuedEvent
  | TaskStartedEvent
  | PlanCreatedEvent
  | StepStartedEvent
  | StepProgressEvent
  | PartialOutputEvent
  | StepRetryingEvent
  | StepLostEvent
  | StepCompletedEvent
  | StepFailedEvent
  | StepSkippedEvent
  | StepCancelledEvent
  | InputRequiredEvent
  | InputReceivedEvent
  | MessageReceivedEvent
  | TaskCancellingEvent
  | TaskRecoveredEvent
  | TaskCompletedEvent
  | TaskFailedEvent
  | TaskCancelledEvent;
