// A form whose button starts some work and, while it runs, stops it.

import { Refused } from "./api.js";
import { h, quote, say } from "./dom.js";

const running = new Set();

// Escape stops whatever runs where the person is.
document.addEventListener("keydown", event => {
  if (event.key !== "Escape" || event.isComposing) return;
  for (const job of running) if (job.node.checkVisibility()) job.stop();
});

/**
 * Make a form.
 *
 * action: the text of ours on its button.
 * parts: what stands above the button; after: what stands beside it; plain: it is not the main one.
 * Ctrl+Enter starts it from any box, and Enter alone from those with `data-enter`.
 * work(signal, status): does it; `status(key, values)` says how far it is. Returns what to say then.
 */
export function job(action, parts, work, { after = [], plain = false } = {}) {
  let control = null;
  const button = say(h("button", { class: plain ? null : "primary" }), action);
  const line = h("span", { class: "status", role: "status" });
  const status = (key, values) => key ? say(line, key, values) : quote(line, "");

  async function run() {
    if (control) return;
    control = new AbortController();
    running.add(made);
    say(button, "stop");
    line.classList.remove("error");
    status("working");
    try {
      status(...((await work(control.signal, status)) ?? []));
    } catch (error) {
      if (error.name === "AbortError") status("stopped");
      else if (error instanceof Refused) refuse(error.message);
      else {
        refuse(String(error));
        console.error(error);
      }
    } finally {
      running.delete(made);
      control = null;
      say(button, action);
    }
  }

  function refuse(message) {
    line.classList.add("error");
    quote(line, message);
  }

  const node = h("form", {
    novalidate: true,
    onsubmit(event) {
      event.preventDefault();
      if (control) control.abort();
      else run();
    },
    onkeydown(event) {
      // Enter also chooses a word of an input method: that is no wish to send.
      if (event.key !== "Enter" || event.isComposing || event.shiftKey) return;
      const writing = event.target.tagName === "TEXTAREA";
      if (writing && (event.ctrlKey || event.metaKey || "enter" in event.target.dataset)) {
        event.preventDefault();
        run();
      }
    },
  }, parts, h("div", { class: "row" }, button, after, line));
  const made = { node, stop: () => control?.abort() };
  return made;
}
