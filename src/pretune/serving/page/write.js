// Views that write: a text that goes on, and a conversation. Both come token by token.

import { events } from "./api.js";
import { box, field, h, say, t } from "./dom.js";
import { job } from "./job.js";
import { example } from "./texts.js";

// Name, what it is at first, and the attributes of its control.
const SETTINGS = [
  ["temperature", 0.8, { min: 0, max: 2, step: 0.05 }],
  ["top_p", 0.95, { min: 0.01, max: 1, step: 0.01 }],
  ["top_k", "", { min: 0, step: 1 }, "off"],
  ["max_tokens", 128, { min: 1, step: 1 }],
  ["seed", "", { step: 1 }, "random"],
];

function settings() {
  const controls = SETTINGS.map(([name, value, given, hint]) => {
    const control = h("input", { type: "number", inputmode: "decimal", name, value, ...given });
    if (hint) say(control, hint, {}, "placeholder");
    return [name, control];
  });
  const node = h("details", { class: "settings" }, t("summary", "settings"), h("div", { class: "grid" },
    controls.map(([name, control]) => field(name, control))));
  // What is left empty, the server decides.
  const values = () => Object.fromEntries(controls.filter(([, control]) => control.value !== "")
    .map(([name, control]) => [name, Number(control.value)]));
  return { node, values };
}

// Milliseconds between two moments at which what came is shown. To lay a long text out takes time: at
// each token, a slow machine would fall behind a fast generator, and hear no click any more.
const SHOWN_EVERY = 30;

/** Write what comes of a request into an element; return what to say when it is over. */
async function stream(path, body, signal, node) {
  const began = performance.now();
  let count = 0, finish = "stop", held = "", last = 0, timer = null;
  const show = () => {
    clearTimeout(timer);
    timer = null;
    if (held) node.append(held);
    held = "";
  };
  node.setAttribute("aria-busy", "true");  // read out when it is whole
  try {
    const whole = { ...body, stream_options: { include_usage: true } };
    for await (const { choices: [choice], usage } of events(path, whole, signal)) {
      const part = choice?.text ?? choice?.delta?.content;
      if (part) held += part;
      finish = choice?.finish_reason ?? finish;
      count = usage?.completion_tokens ?? count;
      if (performance.now() - last > SHOWN_EVERY) {
        show();
        await new Promise(done => setTimeout(done));  // the person's turn
        last = performance.now();
      } else timer ??= setTimeout(show, SHOWN_EVERY);
    }
  } finally {
    show();
    node.removeAttribute("aria-busy");
  }
  const seconds = Math.round((performance.now() - began) / 100) / 10;
  return [finish === "length" ? "written length" : "written stop", { count, seconds }];
}

export function completeView(model) {
  const prompt = box(5, { name: "prompt", required: true }), sampling = settings();
  const output = h("section", { class: "output", "aria-live": "polite" });
  const fill = h("button", { type: "button", onclick: () => { prompt.value = example("prompt"); } });
  const form = job("continue", [field("prompt", prompt), sampling.node], signal => {
    const written = h("span", { class: "written" });
    const given = h("span", { class: "faint" }, prompt.value);
    output.replaceChildren(h("p", { class: "prose", dir: "auto" }, given, written));
    const body = { model: model.name, prompt: prompt.value, ...sampling.values() };
    return stream("v1/completions", body, signal, written);
  }, { after: [say(fill, "example"), t("kbd", "keys hint")] });
  return h("div", {}, form.node, output);
}

export function chatView(model) {
  let messages = [];
  const system = box(2, { name: "system" }), sampling = settings();
  const message = box(2, { name: "message", "data-enter": true });
  say(message, "message hint", {}, "placeholder");
  const log = h("section", { class: "log", role: "log", tabindex: "0" });
  say(log, "conversation", {}, "aria-label");
  sampling.node.append(field("system", system));

  const turn = (role, content) => {
    const body = h("p", { class: "prose", dir: "auto" }, content);
    const who = role === "user" ? t("h3", "you") : h("h3", {}, model.name);
    log.append(h("article", { class: `turn ${role}` }, who, body));
    return body;
  };
  const form = job("send", [field("message", message), sampling.node], async (signal, status) => {
    const content = message.value;
    if (!content.trim()) return status();
    const asked = turn("user", content).parentNode, reply = turn("assistant", "");
    const before = system.value.trim() ? [{ role: "system", content: system.value }] : [];
    const earlier = messages, all = [...messages, { role: "user", content }];
    message.value = "";
    const following = new MutationObserver(() => log.scrollTo(0, log.scrollHeight));
    following.observe(reply, { childList: true });
    let answered = false;
    try {
      const body = { model: model.name, messages: [...before, ...all], ...sampling.values() };
      const told = await stream("v1/chat/completions", body, signal, reply);
      answered = true;
      return told;
    } finally {
      following.disconnect();
      // What was stopped counts as far as it came; what has no reply at all can be sent again.
      if (messages !== earlier) ;  // a new conversation was begun
      else if (answered || reply.textContent)
        messages = [...all, { role: "assistant", content: reply.textContent }];
      else {
        asked.remove();
        reply.parentNode.remove();
        message.value ||= content;
      }
    }
  }, { after: [say(h("button", { type: "button", onclick() {
    form.stop();
    messages = [];
    log.replaceChildren();
    message.focus();
  } }), "new chat")] });
  return h("div", { class: "chat" }, log, form.node);
}
