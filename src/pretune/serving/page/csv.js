// Tables as text: RFC 4180, and what people paste.

/** Return the rows of a table, each a list of cells; quotes may hold separators and line ends. */
export function parse(text, separator) {
  const rows = [];
  let row = [], cell = "", quoted = false, fresh = true;
  const endCell = () => { row.push(cell); cell = ""; fresh = true; };
  const endRow = () => { endCell(); rows.push(row); row = []; };
  for (let i = 0; i < text.length; i++) {
    const c = text[i];
    if (quoted) {
      if (c !== '"') cell += c;
      else if (text[i + 1] === '"') { cell += '"'; i++; }
      else quoted = false;
    } else if (c === '"' && fresh) { quoted = true; fresh = false; }
    else if (c === separator) endCell();
    else if (c === "\n" || c === "\r") {
      if (c === "\r" && text[i + 1] === "\n") i++;
      endRow();
    } else { cell += c; fresh = false; }
  }
  if (cell || row.length || !fresh) endRow();
  return rows.filter(own => own.length > 1 || own[0].trim());  // without blank lines
}

/** A cell that a spreadsheet would compute, with the mark that makes it a text. */
const harmless = cell =>
  /^[=+\-@\t\r＝＋－＠]/.test(cell) && !/^[+-]?\d+(\.\d+)?(e[+-]?\d+)?$/i.test(cell) ? `'${cell}` : cell;

/** Return rows as CSV that spreadsheets open as it is meant: UTF-8 by its mark, no formulas. */
export function unparse(rows) {
  const written = value => {
    const cell = harmless(String(value ?? ""));
    return /[",\r\n]|^\s|\s$/.test(cell) ? `"${cell.replaceAll('"', '""')}"` : cell;
  };
  return "\ufeff" + rows.map(row => row.map(written).join(",") + "\r\n").join("");
}

/** Guess what separates the cells of a text: "\t", ",", or null where each line is a text. */
export function separatorOf(text, name, columns) {
  if (/\.tsv$/i.test(name)) return "\t";
  if (/\.csv$/i.test(name)) return ",";
  const first = text.split(/\r?\n|\r/, 1)[0];
  if (first.includes("\t")) return "\t";
  // Sentences have commas, too: it is a table where its heading names what the model reads.
  const heading = parse(first, ",")[0] ?? [];
  return columns.every(column => heading.includes(column)) && (heading.length > 1 || first.includes('"'))
    ? "," : null;
}

/** Return the text of a file: UTF-8, UTF-16 by its mark, or else what Chinese spreadsheets write. */
export function decode(bytes) {
  const start = new Uint8Array(bytes.slice(0, 2));
  if (start[0] === 0xff && start[1] === 0xfe) return new TextDecoder("utf-16le").decode(bytes);
  if (start[0] === 0xfe && start[1] === 0xff) return new TextDecoder("utf-16be").decode(bytes);
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch {
    return new TextDecoder("gb18030").decode(bytes);
  }
}
