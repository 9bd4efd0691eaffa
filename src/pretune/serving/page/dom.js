// Elements, made one by one: what comes from a model, a file or a person is only ever text in them.

import { language, text } from "./texts.js";

/** Make an element: properties, `on...` listeners, attributes, `vars` (of CSS); then what is in it. */
export function h(tag, given = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(given)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "vars") for (const v in value) node.style.setProperty(`--${v}`, value[v]);
    else if (name === "value") node.value = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(Infinity).filter(child => child ?? false));
  return node;
}

/** Write a text of ours into an element or an attribute of it, in whatever language is chosen. */
export function say(node, key, values = {}, place = "textContent") {
  node.ours = { ...node.ours, [place]: [key, values] };
  node.dataset.ours = "";
  if (place === "textContent") node.textContent = text(key, values);
  else node.setAttribute(place, text(key, values));
  return node;
}

/** Write a text of others into an element that a text of ours stood in. */
export function quote(node, text) {
  delete node.ours;
  delete node.dataset.ours;
  node.textContent = text;
}

/** An element that holds a text of ours. */
export const t = (tag, key, given = {}, values = {}) => say(h(tag, given), key, values);

/** Write all texts of ours again: the language was changed. */
export function retell() {
  document.documentElement.lang = language() === "zh" ? "zh-CN" : "en";
  for (const node of document.querySelectorAll("[data-ours]"))
    for (const [place, [key, values]] of Object.entries(node.ours)) say(node, key, values, place);
}

let count = 0;

/** A control with its label before it; `key` is a text of ours, or else the label itself. */
export function field(key, control, given = {}) {
  control.id ||= `field-${++count}`;
  const label = text(key) ? t("label", key, { for: control.id }) : h("label", { for: control.id }, key);
  return h("div", { class: "field", ...given }, label, control);
}

/** A box to write in, as high as what is in it. */
export const box = (rows, given = {}) =>
  h("textarea", { rows, vars: { rows }, dir: "auto", spellcheck: "false", ...given });

export const number = (value, digits = 3) =>
  new Intl.NumberFormat(language(), { maximumFractionDigits: digits }).format(value);
export const percent = value =>
  new Intl.NumberFormat(language(), { style: "percent", minimumFractionDigits: 1,
    maximumFractionDigits: 1 }).format(value);

/** A list of names with bars: `[name, share from 0 to 1, what is written beside it, chosen]`. */
export function bars(rows, shown = 10) {
  const item = ([name, share, written, chosen]) =>
    h("li", { class: chosen ? "chosen" : null },
      h("bdi", { class: "name" }, name),
      h("span", { class: "track", "aria-hidden": "true" },
        h("span", { class: "fill", vars: { share: Math.max(0, Math.min(1, share)) } })),
      h("span", { class: "score" }, written));
  const more = rows.slice(shown);
  return [
    h("ul", { class: "bars" }, rows.slice(0, shown).map(item)),
    more.length && h("details", {}, t("summary", "more", {}, { count: more.length }),
      h("ul", { class: "bars" }, more.map(item))),
  ];
}
