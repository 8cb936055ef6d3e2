// A task's events, folded into what its page shows.

const ENDED = new Set(["completed", "failed", "cancelled", "skipped"]);

/** Whether nothing more will happen to a task or a step. */
export const hasEnded = (status) => ENDED.has(status);

/** A task as its log tells it. */
export class TaskLog {
  status = "pending";
  description = "";
  agent = null;
  params = {};
  metadata = {};
  error = "";
  /** The frames of the code in which the task's step failed, as far as the server tells. */
  traceback = [];
  steps = new Map();
  questions = new Map();
  /** What happened: `at`, `text`, `kind`. */
  entries = [];
  startedAt = null;
  endedAt = null;
  /** Is told each piece of text, and `null` where the text of a step begins anew. */
  onText = () => {};

  apply(event) {
    const { data, timestamp } = event;
    const name = data.step_id;
    const step = this.steps.get(name);
    const add = (text, kind = "") => {
      this.entries.push({ at: timestamp, text, kind });
      return this.entries.at(-1);
    };
    // One entry for many events of an attempt: the last of them counts.
    const last = (kind, text) => {
      step.open[kind] ??= add("");
      Object.assign(step.open[kind], { at: timestamp, text });
    };
    const close = (status) => {
      step.status = status;
      step.endedAt = timestamp;
      for (const [id, asked] of this.questions) {
        if (asked.step_id === step.step_id) this.questions.delete(id);
      }
    };
    switch (event.event_type) {
      case "task_created":
        this.createdAt = timestamp;
        this.description = data.task_description;
        this.agent = data.agent;
        this.params = data.params;
        this.metadata = data.metadata ?? {};
        add("Created");
        break;
      case "task_queued":
        this.status = "queued";
        add(`Queued, number ${data.position} in line`);
        break;
      case "task_started":
        this.status = "running";
        this.startedAt = timestamp;
        add(`Started on ${data.node}`);
        break;
      case "plan_created":
        for (const one of data.steps) {
          this.steps.set(one.step_id, { ...one, status: "pending", attempt: 0, text: "", open: {} });
        }
        add([`Planned ${data.steps.length} steps`, data.planned_by, data.reason].filter(Boolean).join(", "));
        break;
      case "step_started":
        Object.assign(step, { status: "running", attempt: data.attempt, progress: null, error: "", open: {} });
        step.startedAt = timestamp;
        add(`${name} started${data.attempt > 1 ? `, attempt ${data.attempt}` : ""}: ${data.agent}`);
        break;
      case "step_progress":
        step.progress = data;
        last("progress", `${name}: ${data.done ?? "?"}${data.total ? ` of ${data.total}` : ""} ${data.message}`);
        break;
      case "partial_output":
        step.text += data.output;
        last("text", `${name} wrote ${step.text.length.toLocaleString()} characters`);
        this.onText(step, data.output);
        break;
      case "step_retrying":
        Object.assign(step, { status: "retrying", text: "", error: data.error_message, traceback: data.traceback ?? [] });
        add(data.reason === "recovered"
          ? `${name} begins again after a restart of the server`
          : `${name} failed, attempt ${data.next_attempt} in ${data.retry_in} s: ${data.error_message}`, "warn");
        this.onText(step, null);
        break;
      case "step_lost":
        add(`${step ? name : "Planning"} was interrupted by a crash of the server${data.suspected ? " and may be its cause" : ""}`, "warn");
        break;
      case "step_completed":
        close("completed");
        Object.assign(step, { result: data.result, duration: data.duration, cached: data.cached });
        add(`${name} completed${data.cached ? ", taken over" : ""}`, "good");
        break;
      case "step_failed":
        close("failed");
        Object.assign(step, { error: data.error_message, traceback: data.traceback ?? [] });
        add(`${name} failed${data.degraded ? ", the plan goes on without it" : ""}: ${data.error_message}`, "bad");
        break;
      case "step_skipped":
        close("skipped");
        add(`${name} skipped: ${data.reason}`);
        break;
      case "step_cancelled":
        close("cancelled");
        add(`${name} cancelled`);
        break;
      case "input_required":
        this.questions.set(data.input_id, data);
        this.status = step.status = "input_required";
        add(`${name} asks: ${data.prompt}`, "warn");
        break;
      case "input_received": {
        this.questions.delete(data.input_id);
        const asks = [...this.questions.values()];
        if (step && !asks.some((one) => one.step_id === name)) step.status = "running";
        if (!asks.length && this.status === "input_required") this.status = "running";
        const said = data.action === "accept" ? JSON.stringify(data.value) : `${data.action}d`;
        add(`${data.by} answered ${name}: ${said}`);
        break;
      }
      case "message_received":
        add(`${data.by} says: ${typeof data.message === "string" ? data.message : JSON.stringify(data.message)}`);
        break;
      case "task_recovered":
        add(`Goes on after a restart on ${data.node}`, "warn");
        break;
      case "task_cancelling":
        this.status = "cancelling";
        add(`${data.by} cancels${data.reason ? `: ${data.reason}` : ""}`, "warn");
        break;
      case "task_completed":
      case "task_failed":
      case "task_cancelled":
        this.#end(data, timestamp, add);
        break;
    }
  }

  /** The steps on which no other depends: their text is the task's output. */
  get sinks() {
    const needed = new Set([...this.steps.values()].flatMap((step) => step.depends_on));
    return [...this.steps.values()].filter((step) => !needed.has(step.step_id));
  }

  #end(data, timestamp, add) {
    this.status = data.status;
    this.endedAt = timestamp;
    this.error = data.error_message ?? "";
    this.traceback = this.steps.get(data.failed_step)?.traceback ?? [];
    this.questions.clear();
    if (data.status === "completed") add(`Completed${data.degraded ? `, without ${data.missing_steps.join(", ")}` : ""}`, "good");
    else if (data.status === "failed") add(`Failed: ${this.error}`, "bad");
    else add(`Cancelled by ${data.by}${data.reason ? `: ${data.reason}` : ""}${data.stopped ? "" : "; something was cut off"}`, "bad");
  }
}
