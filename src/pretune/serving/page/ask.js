// A task's own view: its columns to fill in, its answer, and why.

import { ask } from "./api.js";
import { shown } from "./answers.js";
import { box, field, h, number, say, t } from "./dom.js";
import { job } from "./job.js";
import { example, text } from "./texts.js";

const ROWS = { context: 6, question: 1, stem: 1, text: 4, tokens: 4, source: 4, document: 8 };
const CANDIDATES = [1, 2, 4];

export function askView(model) {
  const { task, inputs } = model;
  const columns = inputs.map(name => [name, box(ROWS[name] ?? 3, { name, required: true })]);
  const output = h("section", { class: "output", "aria-live": "polite" });
  const fill = h("button", { type: "button", onclick() {
    for (const [name, control] of columns) control.value = example(name, task);
  } });
  const after = [say(fill, "example")];
  if (task === "mask_lm") after.push(gapButton(columns[0][1]));
  // A search finds as many texts as it has beams.
  const counts = CANDIDATES.filter(count => count <= model.max_candidates);
  const candidates = h("select", {}, counts.map(n => h("option", { value: n }, n)));
  const given = () => Object.fromEntries(columns.map(([name, control]) => [name,
    name === "choices" ? control.value.split("\n").filter(line => line.trim()) : control.value]));

  const form = job("go", [
    columns.map(([name, control]) =>
      field(text(`column ${name}`) ? `column ${name}` : name, control)),
    counts.length > 1 && field("candidates", candidates, { class: "field short" }),
  ], async signal => {
    const input = given(), body = { model: model.name, inputs: [input] };
    if (task === "answer") body.top_k = 5;
    if (candidates.value > 1) body.candidates = Number(candidates.value);
    const { answers: [answer] } = await ask("v1/predict", body, signal);
    output.replaceChildren(...elements(shown(model, input, answer)));
    if (model.abilities.includes("explain")) output.append(whyView(model, input));
  }, { after: [...after, t("kbd", "keys hint")] });
  return h("div", {}, form.node, output);
}

const elements = nodes => [nodes].flat(Infinity).filter(node => node);

const gapButton = control => say(h("button", { type: "button", onclick() {
  control.setRangeText("[MASK]", control.selectionStart, control.selectionEnd, "end");
  control.focus();
} }), "gap");

/** A button that asks what the answer comes from, and then shows it. */
function whyView(model, input) {
  const place = h("div");
  const form = job("why", [], async signal => {
    const body = { model: model.name, inputs: [input], attention: true };
    const { explanations: [why] } = await ask("v1/explain", body, signal);
    place.replaceChildren(...elements([words(why), attention(why)]));
  }, { plain: true });
  return h("div", { class: "why" }, form.node, place);
}

/** The text of a token as it is seen, also where it is nothing but space. */
const plain = text => text.trim() || (text.includes("\n") ? "↵" : text ? "␣" : "·");

function words({ texts, attributions, value, baseline }) {
  if (!texts.length) return null;
  const most = Math.max(...attributions.map(Math.abs)) || 1;
  // What begins with no space goes on with the word before it, unless it is a mark such as [SEP].
  const joined = i => i > 0 && !/^(\s|\[[A-Z]+\]$|<.*>$)/.test(texts[i]);
  const chip = (text, i) => h("span", {
    class: ["word", attributions[i] < 0 ? "against" : "for", joined(i) && "joined"]
      .filter(Boolean).join(" "),
    vars: { share: Math.abs(attributions[i]) / most },
    title: number(attributions[i], 4),
  }, plain(text));
  return [
    t("h3", "words"),
    h("p", { class: "words", dir: "auto" }, texts.map(chip)),
    h("p", { class: "faint" }, t("span", "words note"), " ",
      t("span", "for", { class: "word for", vars: { share: 0.6 } }), " ",
      t("span", "against", { class: "word against", vars: { share: 0.6 } })),
    h("details", {}, t("summary", "table"), h("div", { class: "wide" }, h("table", {},
      h("thead", {}, h("tr", {}, t("th", "token", { scope: "col" }),
        t("th", "attribution", { scope: "col" }))),
      h("tbody", {}, texts.map((text, i) => h("tr", {}, h("td", {}, h("bdi", {}, plain(text))),
        h("td", { class: "number" }, number(attributions[i], 4))))))),
    t("p", "words sum", { class: "faint" },
      { sum: number(value - baseline, 4), value: number(value, 4), baseline: number(baseline, 4) })),
  ];
}

function attention({ texts, attention: layers }) {
  if (!layers) return texts.length > 64 && t("p", "no attention", { class: "faint" });
  const mean = layers[0].map((row, i) => row.map((_, j) =>
    layers.reduce((sum, layer) => sum + layer[i][j], 0) / layers.length));
  const names = texts.map(plain), place = h("div", { class: "wide" });
  const draw = map => {
    const most = Math.max(...map.flat()) || 1;
    place.replaceChildren(h("table", { class: "heat" },
      h("thead", {}, h("tr", {}, h("td"), names.map(name =>
        h("th", { scope: "col" }, h("span", {}, name))))),
      h("tbody", {}, map.map((row, i) => h("tr", {}, h("th", { scope: "row" }, names[i]),
        row.map((value, j) => h("td", { vars: { share: value / most },
          title: `${names[i]} → ${names[j]}: ${number(value)}` })))))));
  };
  const layer = h("select", { onchange: () => draw(layers[layer.value] ?? mean) },
    t("option", "all layers", { value: -1 }),
    layers.map((_, i) => h("option", { value: i }, i + 1)));
  draw(mean);
  return h("details", {}, t("summary", "attention"), field("layer", layer, { class: "field short" }),
    t("p", "attention note", { class: "faint" }), place);
}
