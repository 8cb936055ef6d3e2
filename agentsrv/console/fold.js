// The state of a task: the fold of its log, as `TaskState` in agentsrv/models/task.py.
//
// Fields are named and filled as in the reply to `status`; tests compare the two folds on random
// logs. Every page reads statuses and questions from here. Unlike the server, this fold accepts any
// order of events and ignores unknown ones: a list receives the life-cycle events only, and a server
// may be newer than the page.

const ENDED = new Set(["completed", "failed", "cancelled", "skipped"]);
const UNKNOWN = ""; // the id of a question that is known to be open, and no more

/** Whether nothing more will happen to a task or a step. */
export const hasEnded = (status) => ENDED.has(status);

/** A step of the plan; has the fields of the plan in addition. */
class StepState {
  attempt = 0;
  output = "";
  result = null;
  error_message = null;
  degraded = false;
  traceback = [];
  progress = null;
  started_at = null;
  ended_at = null;
  #task;
  #status = "pending";

  constructor(task, planned) {
    Object.assign(this, planned);
    this.#task = task;
  }

  get status() {
    return this.#status === "running" && this.#asked.length ? "input_required" : this.#status;
  }

  get #asked() {
    return [...this.#task.asked.values()].filter(({ step_id }) => step_id === this.step_id);
  }

  apply({ event_type, data, timestamp }) {
    switch (event_type) {
      case "step_started":
        Object.assign(this, { attempt: data.attempt, progress: null, started_at: timestamp });
        this.#status = "running";
        break;
      case "step_progress":
        this.progress = data;
        break;
      case "partial_output":
        this.output += data.output;
        break;
      case "step_lost":
        this.attempt = data.attempt;
        this.#status = "running";
        break;
      case "step_retrying":
        Object.assign(this, { output: "", error_message: data.error_message, traceback: data.traceback ?? [] });
        this.#status = "retrying";
        break;
      case "step_completed":
        Object.assign(this, { result: data.result, duration: data.duration, error_message: null });
        this.#end("completed", timestamp);
        break;
      case "step_failed":
        Object.assign(this, { error_message: data.error_message, degraded: data.degraded, traceback: data.traceback ?? [] });
        this.#end("failed", timestamp);
        break;
      case "step_skipped":
        this.error_message = data.reason;
        this.#end("skipped", timestamp);
        break;
      case "step_cancelled":
        this.#end("cancelled", timestamp);
        break;
    }
  }

  /** The end of a step closes its questions. */
  #end(status, timestamp) {
    this.#status = status;
    this.ended_at = timestamp;
    for (const { input_id } of this.#asked) this.#task.asked.delete(input_id);
  }
}

export class TaskState {
  seq = 0;
  user_input = "";
  agent = null;
  params = {};
  metadata = {};
  created_at = "";
  updated_at = "";
  started_at = null;
  ended_at = null;
  final_output = null;
  error_message = null;
  /** The frames of the code in which the task's step failed, as far as the server sends them. */
  traceback = [];
  steps = new Map();
  /** Questions that were neither answered nor closed by the end of their step, by id. */
  asked = new Map();
  #status = "pending"; // without regard to questions

  /** A state without a log, for later events: as `status` or a row of `list` reports it. */
  static of({ status, seq = 0, inputs = [{ input_id: UNKNOWN }] }) {
    const state = new TaskState();
    state.seq = seq;
    const isAsking = status === "input_required";
    state.#status = isAsking ? "running" : status;
    if (isAsking) for (const asked of inputs) state.asked.set(asked.input_id, asked);
    return state;
  }

  get status() {
    return this.#status === "running" && this.asked.size ? "input_required" : this.#status;
  }

  /** The open questions, in the order in which they were asked. */
  get inputs() {
    return hasEnded(this.#status) ? [] : [...this.asked.values()];
  }

  get degraded() {
    return [...this.steps.values()].some((step) => step.degraded);
  }

  /** Whether questions are open that `of` was not told. */
  get hasUnknownQuestions() {
    return this.asked.has(UNKNOWN);
  }

  /** The steps on which no other depends: their text is the task's output. */
  get sinks() {
    const needed = new Set([...this.steps.values()].flatMap((step) => step.depends_on));
    return [...this.steps.values()].filter((step) => !needed.has(step.step_id));
  }

  apply(event) {
    const { event_type, data, seq, timestamp } = event;
    this.seq = seq;
    this.updated_at = timestamp;
    this.steps.get(data.step_id)?.apply(event);
    switch (event_type) {
      case "task_created":
        this.user_input = data.task_description;
        this.created_at = timestamp;
        Object.assign(this, { agent: data.agent, params: data.params, metadata: data.metadata ?? {} });
        break;
      case "task_queued":
        this.#status = "queued";
        break;
      case "task_started":
        this.#status = "running";
        this.started_at = timestamp;
        break;
      case "plan_created":
        for (const planned of data.steps) this.steps.set(planned.step_id, new StepState(this, planned));
        break;
      case "input_required":
        this.asked.set(data.input_id, data);
        break;
      case "input_received":
        this.asked.delete(data.input_id);
        break;
      case "task_cancelling":
        this.#status = "cancelling";
        break;
      case "task_completed":
        this.final_output = data.final_output;
        this.#end("completed", timestamp);
        break;
      case "task_failed":
        this.error_message = data.error_message;
        this.traceback = this.steps.get(data.failed_step)?.traceback ?? [];
        this.#end("failed", timestamp);
        break;
      case "task_cancelled":
        this.#end("cancelled", timestamp);
        break;
    }
  }

  #end(status, timestamp) {
    this.#status = status;
    this.ended_at = timestamp;
  }
}
