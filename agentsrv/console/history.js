// A task's events in words, for the history on its page.

/** Collects entries `{ at, text, kind }`; progress and text of an attempt have one entry each. */
export class History {
  entries = [];
  #latest = new Map(); // the entries of the current attempt, by step and kind of event

  /** Adds an event that `state` has applied. */
  add({ event_type, data, timestamp }, state) {
    const { step_id: name } = data;
    const add = (text, kind = "") => {
      this.entries.push({ at: timestamp, text, kind });
      return this.entries.at(-1);
    };
    // One entry for many events of an attempt: it shows the last of them.
    const update = (text) => {
      const key = `${name} ${event_type}`;
      if (!this.#latest.has(key)) this.#latest.set(key, add(""));
      Object.assign(this.#latest.get(key), { at: timestamp, text });
    };
    switch (event_type) {
      case "task_created":
        add("Created");
        break;
      case "task_queued":
        add(`Queued, number ${data.position} in line`);
        break;
      case "task_started":
        add(`Started on ${data.node}`);
        break;
      case "plan_created":
        add([`Planned ${data.steps.length} steps`, data.planned_by, data.reason].filter(Boolean).join(", "));
        break;
      case "step_started":
        for (const kind of ["step_progress", "partial_output"]) this.#latest.delete(`${name} ${kind}`);
        add(`${name} started${data.attempt > 1 ? `, attempt ${data.attempt}` : ""}: ${data.agent}`);
        break;
      case "step_progress":
        update(`${name}: ${data.done ?? "?"}${data.total ? ` of ${data.total}` : ""} ${data.message}`);
        break;
      case "partial_output":
        update(`${name} wrote ${state.steps.get(name).output.length.toLocaleString()} characters`);
        break;
      case "step_retrying":
        add(data.reason === "recovered"
          ? `${name} begins again after a restart of the server`
          : `${name} failed, attempt ${data.next_attempt} in ${data.retry_in} s: ${data.error_message}`, "warn");
        break;
      case "step_lost":
        add(`${name ?? "Planning"} was interrupted by a crash of the server${data.suspected ? " and may be its cause" : ""}`, "warn");
        break;
      case "step_completed":
        add(`${name} completed${data.cached ? ", taken over" : ""}`, "good");
        break;
      case "step_failed":
        add(`${name} failed${data.degraded ? ", the plan continues without it" : ""}: ${data.error_message}`, "bad");
        break;
      case "step_skipped":
        add(`${name} skipped: ${data.reason}`);
        break;
      case "step_cancelled":
        add(`${name} cancelled`);
        break;
      case "input_required":
        add(`${name} asks: ${data.prompt}`, "warn");
        break;
      case "input_received":
        add(`${data.by} answered ${name}: ${data.action === "accept" ? JSON.stringify(data.value) : `${data.action}d`}`);
        break;
      case "message_received":
        add(`${data.by} says: ${typeof data.message === "string" ? data.message : JSON.stringify(data.message)}`);
        break;
      case "task_recovered":
        add(`Continues after a restart on ${data.node}`, "warn");
        break;
      case "task_cancelling":
        add(`${data.by} cancels${data.reason ? `: ${data.reason}` : ""}`, "warn");
        break;
      case "task_completed":
        add(`Completed${data.degraded ? `, without ${data.missing_steps.join(", ")}` : ""}`, "good");
        break;
      case "task_failed":
        add(`Failed: ${data.error_message}`, "bad");
        break;
      case "task_cancelled":
        add(`Cancelled by ${data.by}${data.reason ? `: ${data.reason}` : ""}${data.stopped ? "" : "; something was cut off"}`, "bad");
        break;
    }
  }
}
