// Which of some texts are nearest to a query.

import { ask } from "./api.js";
import { bars, box, field, h, number, say, t } from "./dom.js";
import { job } from "./job.js";
import { example } from "./texts.js";

const AT_ONCE = 64;

export function nearestView(model) {
  const texts = box(8, { name: "texts" }), query = box(1, { name: "query" });
  const output = h("section", { class: "output", "aria-live": "polite" });
  const known = new Map();  // vectors by their texts: of a list that grows, only what is new is asked
  const fill = h("button", { type: "button", onclick() {
    texts.value = example("texts");
    query.value = example("query");
  } });

  async function embed(all, signal, status) {
    const fresh = [...new Set(all)].filter(text => !known.has(text));
    for (let at = 0; at < fresh.length; at += AT_ONCE) {
      status("embedding", { done: at, all: fresh.length });
      const input = fresh.slice(at, at + AT_ONCE);
      const { data } = await ask("v1/embeddings", { model: model.name, input }, signal);
      for (const { index, embedding } of data) known.set(input[index], embedding);
    }
  }

  const form = job("search", [field("texts", texts), field("query", query)],
    async (signal, status) => {
      const all = texts.value.split("\n").filter(line => line.trim()), sought = query.value;
      if (!all.length || !sought.trim()) return ["no texts"];
      await embed([sought, ...all], signal, status);
      const target = known.get(sought);
      const ranked = all.map(text => [text, cosine(target, known.get(text))])
        .sort((a, b) => b[1] - a[1]);
      output.replaceChildren(
        ...bars(ranked.map(([text, score]) => [text, score, number(score)]), 20).filter(Boolean),
        t("p", "nearest note", { class: "faint" }, { size: target.length }));
      return null;
    }, { after: [say(fill, "example"), t("kbd", "keys hint")] });
  return h("div", { class: "nearest" }, form.node, output);
}

function cosine(a, b) {
  let product = 0, first = 0, second = 0;
  for (let i = 0; i < a.length; i++) {
    product += a[i] * b[i];
    first += a[i] * a[i];
    second += b[i] * b[i];
  }
  return product / (Math.sqrt(first * second) || 1);
}
