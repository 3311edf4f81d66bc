// What reading does not need: the theme, sorting and filtering. All data comes from the cells of the page.
"use strict";

(function theme() {
  const root = document.documentElement;
  const button = document.getElementById("theme");
  const prefersDark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : prefersDark.matches);
  const show = () => { button.textContent = isDark() ? "Light theme" : "Dark theme"; };
  const stored = storage("qcc-report-theme");
  if (stored.get() === "dark" || stored.get() === "light") root.dataset.theme = stored.get();
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    stored.set(root.dataset.theme);
    show();
  });
  prefersDark.addEventListener("change", show);
  button.hidden = false;
  show();
})();

// A value kept by the browser, or by nobody: a page opened from a file may not be allowed to store.
function storage(key) {
  return {
    get() { try { return localStorage.getItem(key); } catch { return null; } },
    set(value) { try { localStorage.setItem(key, value); } catch { /* the choice lasts as long as the page */ } },
  };
}

(function layers() {
  const table = document.getElementById("layer-table");
  if (!table) return;
  const body = table.tBodies[0];
  const rows = Array.from(body.rows);
  const place = new Map(rows.map((row, index) => [row, index]));

  function key(row, column, numeric) {
    const cell = row.cells[column];
    if (!numeric) return cell.firstElementChild ? cell.querySelector("summary").textContent : cell.textContent;
    return cell.dataset.v ? Number(cell.dataset.v) : null;
  }

  // Numbers begin with the largest, text with A; a third click restores the order of the network. Unknown goes last.
  function sort(title) {
    const column = title.cellIndex;
    const numeric = title.dataset.sort === "number";
    const turns = numeric ? ["descending", "ascending"] : ["ascending", "descending"];
    const next = turns[turns.indexOf(title.getAttribute("aria-sort")) + 1];
    for (const other of title.parentElement.cells) other.removeAttribute("aria-sort");
    const order = rows.slice();
    if (next) {
      title.setAttribute("aria-sort", next);
      const sign = next === "ascending" ? 1 : -1;
      const keys = new Map(rows.map((row) => [row, key(row, column, numeric)]));
      const compare = numeric ? (a, b) => a - b : new Intl.Collator(undefined, { numeric: true }).compare;
      order.sort((a, b) => {
        const x = keys.get(a), y = keys.get(b);
        if (x === null || y === null) return (x === null) - (y === null) || place.get(a) - place.get(b);
        return sign * compare(x, y) || place.get(a) - place.get(b);
      });
    }
    body.append(...order);
  }

  for (const title of table.tHead.rows[0].cells) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = title.textContent;
    title.replaceChildren(button);
    button.addEventListener("click", () => sort(title));
  }

  const input = document.getElementById("filter");
  const shown = document.getElementById("shown");
  let texts = null;
  function filter() {
    texts ??= new Map(rows.map((row) => [row, row.textContent.toLowerCase()]));
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    for (const row of rows) {
      row.hidden = !words.every((word) => texts.get(row).includes(word));
      count += row.hidden ? 0 : 1;
    }
    shown.textContent = words.length ? `${count} of ${rows.length} layers` : "";
  }
  input.addEventListener("input", filter);
  document.querySelector(".tools").hidden = false;

  // A link to a layer shows it, whatever the filter hides, and opens its details.
  function open() {
    const row = location.hash.startsWith("#layer-") ? document.getElementById(location.hash.slice(1)) : null;
    if (!row || !rows.includes(row)) return;
    if (row.hidden) { input.value = ""; filter(); }
    row.querySelector("details").open = true;
    row.scrollIntoView({ block: "center" });
  }
  addEventListener("hashchange", open);
  open();
})();
