// The model card: what is known of a model, and its Markdown.

import { ask } from "./api.js";
import { h, number, t } from "./dom.js";
import { language } from "./texts.js";

const FACTS = ["task", "model_type", "parameters", "context_length", "embedding_size", "version",
  "step", "digest"];

export function cardView(model) {
  const rows = [["name", model.name], ...FACTS.map(name => [name, model[name]]),
    ["labels", model.labels?.join(", ")],
    ["created", new Date(model.created * 1000).toLocaleString(language())]];
  const card = h("article", { class: "card" });
  ask(`v1/models/${encodeURIComponent(model.name)}`).then(
    ({ pretune }) => card.replaceChildren(...pretune.card
      ? markdown(pretune.card) : [t("p", "no card", { class: "faint" })]),
    error => card.replaceChildren(h("p", { class: "status error" }, error.message)));
  return h("div", {}, h("dl", { class: "facts" }, rows.filter(([, value]) => value ?? false).map(
    ([name, value]) => [t("dt", `fact ${name}`),
      h("dd", {}, h("bdi", {}, typeof value === "number" ? number(value) : value))])), card);
}

/**
 * Return elements for Markdown: headings, paragraphs, lists, tables, quotes and code; emphasis, code
 * and links to the web. Everything else, HTML above all, stays the text that it is.
 */
export function markdown(source) {
  const lines = source.replace(/^---\n[\s\S]*?\n---\n/, "").replaceAll("\r\n", "\n").split("\n");
  const blocks = [];
  const while_ = test => {
    const own = [];
    while (lines.length && test(lines[0])) own.push(lines.shift());
    return own;
  };
  const LIST = /^\s*([-*+]|\d+[.)])\s+/, TABLE = /^\s*\|/, FENCE = /^\s*(```|~~~)/;
  const special = line => /^(#{1,6}\s|>|\s*$)/.test(line) || LIST.test(line) || TABLE.test(line) || FENCE.test(line);
  while (lines.length) {
    const line = lines[0], heading = line.match(/^(#{1,6})\s+(.*?)#*$/);
    if (!line.trim()) lines.shift();
    else if (FENCE.test(line)) {
      lines.shift();
      blocks.push(h("pre", {}, h("code", {}, while_(own => !FENCE.test(own)).join("\n"))));
      lines.shift();
    } else if (heading) {
      lines.shift();
      // The page has headings above those of the card.
      blocks.push(h(`h${Math.min(6, heading[1].length + 2)}`, {}, inline(heading[2])));
    } else if (TABLE.test(line)) blocks.push(table(while_(own => TABLE.test(own))));
    else if (LIST.test(line)) {
      const tag = /^\s*\d/.test(line) ? "ol" : "ul";
      const items = while_(own => LIST.test(own) || /^\s+\S/.test(own)).reduce((all, own) => {
        if (LIST.test(own)) all.push(own.replace(LIST, ""));
        else all[all.length - 1] += ` ${own.trim()}`;
        return all;
      }, []);
      blocks.push(h(tag, {}, items.map(own => h("li", {}, inline(own)))));
    } else if (line.startsWith(">"))
      blocks.push(h("blockquote", {}, inline(while_(own => own.startsWith(">"))
        .map(own => own.replace(/^>\s?/, "")).join(" "))));
    else {
      const own = [lines.shift(), ...while_(next => !special(next))];
      blocks.push(h("p", {}, inline(own.join(" "))));
    }
  }
  return blocks;
}

function table(lines) {
  const rows = lines.filter(line => !/^[\s|:-]+$/.test(line)).map(line =>
    line.trim().replace(/^\||\|$/g, "").split("|").map(cell => inline(cell.trim())));
  const row = (cells, tag) => h("tr", {}, cells.map(cell => h(tag, {}, cell)));
  return h("div", { class: "wide" }, h("table", {}, h("thead", {}, row(rows[0] ?? [], "th")),
    h("tbody", {}, rows.slice(1).map(cells => row(cells, "td")))));
}

const INLINE = /`([^`]+)`|!?\[([^\]]*)\]\(([^)\s]+)[^)]*\)|\*\*([^*]+)\*\*|\*([^*\s][^*]*)\*/;

/** Return the nodes of a line: texts, emphasis, code, links. */
function inline(source) {
  const nodes = [];
  let rest = source, match;
  while ((match = rest.match(INLINE))) {
    const [whole, code, label, url, strong, weak] = match;
    nodes.push(rest.slice(0, match.index));
    if (code !== undefined) nodes.push(h("code", {}, code));
    else if (strong !== undefined) nodes.push(h("strong", {}, inline(strong)));
    else if (weak !== undefined) nodes.push(h("em", {}, inline(weak)));
    else if (/^https?:\/\//i.test(url) && !whole.startsWith("!"))
      nodes.push(h("a", { href: url, rel: "noopener noreferrer", target: "_blank" }, inline(label)));
    else nodes.push(label);
    rest = rest.slice(match.index + whole.length);
  }
  return [...nodes, rest];
}
