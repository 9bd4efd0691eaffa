"use strict";
(() => {
  const get = id => document.getElementById(id);
  const data = JSON.parse(get("examples").textContent);
  const body = get("rows"), filter = get("filter"), wrong = get("wrong"), kind = get("kind");
  const state = { column: data.sort, down: data.down, page: 0 };
  let shown = [];
  const number = value => value === "" || typeof value === "boolean" ? NaN : Number(value);
  const compare = (a, b) => {
    let x = a[state.column], y = b[state.column];
    if (x === null || y === null) return (x === null) - (y === null);
    if (!Number.isNaN(number(x)) && !Number.isNaN(number(y))) { x = number(x); y = number(y); }
    return x === y ? 0 : (x < y ? -1 : 1) * (state.down ? -1 : 1);
  };
  const choose = () => {
    const word = filter.value.toLowerCase(), some = kind.value;
    shown = data.rows.filter(row => (!wrong.checked || row[data.right] === false) &&
      (!some || row.at(-1).includes(some)) &&
      (!word || row.some(cell => typeof cell === "string" && cell.toLowerCase().includes(word))));
    shown.sort(compare);
    state.page = 0;
    draw();
  };
  const cell = value => value === null ? "" : value === true ? data.words.yes : value === false ? data.words.no :
    typeof value === "number" && !Number.isInteger(value) ? value.toFixed(4) : String(value);
  const draw = () => {
    body.replaceChildren(...shown.slice(state.page * data.size, (state.page + 1) * data.size)
      .map(row => {
        const line = document.createElement("tr");
        for (const value of row.slice(0, -1)) {
          const field = document.createElement("td"), text = document.createElement("bdi");
          if (typeof value === "number") field.className = "number";
          else field.className = String(value).length > data.short ? "long" : "short";
          text.textContent = cell(value);
          field.append(text);
          line.append(field);
        }
        return line;
      }));
    const pages = Math.max(1, Math.ceil(shown.length / data.size));
    const numbers = [shown.length, state.page + 1, pages].map(n => n.toLocaleString("en"));
    get("count").textContent = data.words.count.replace(/\{(\d)\}/g, (_, n) => numbers[n]);
    get("back").disabled = state.page === 0;
    get("on").disabled = state.page + 1 >= pages;
    document.querySelectorAll("#head th").forEach((head, i) => head.setAttribute("aria-sort",
      i !== state.column ? "none" : state.down ? "descending" : "ascending"));
  };
  document.querySelectorAll("#head button").forEach((button, i) => button.onclick = () => {
    state.down = state.column === i ? !state.down : true;
    state.column = i;
    choose();
  });
  const kinds = [...new Set(data.rows.flatMap(row => row.at(-1)))].sort();
  for (const name of kinds) {
    const option = document.createElement("option");
    option.textContent = option.value = name;
    kind.append(option);
  }
  kind.parentElement.hidden = kinds.length < 2;
  wrong.parentElement.hidden = data.right < 0;
  get("back").onclick = () => { state.page -= 1; draw(); };
  get("on").onclick = () => { state.page += 1; draw(); };
  filter.oninput = wrong.onchange = kind.onchange = choose;
  choose();
})();
