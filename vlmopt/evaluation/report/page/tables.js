"use strict";
(() => {
  const all = (what, where = document) => [...where.querySelectorAll(what)];
  const words = (cell) => cell.innerText.replace(/\s+/g, " ").trim();
  // The first number of a cell, with a real minus sign and thousands; what has none comes last.
  const worth = (cell) => {
    const found = (cell.querySelector("b") || cell).textContent.replaceAll(",", "").replace("−", "-").match(/-?\d+(\.\d+)?/);
    return found ? Number(found[0]) : null;
  };
  const order = (first, second, falling) => {
    const [a, b] = [worth(first), worth(second)];
    if (first.tagName === "TH" || (a === null && b === null)) return (falling ? -1 : 1) * words(first).localeCompare(words(second), "en", { numeric: true });
    if (a === null || b === null) return a === null ? 1 : -1;
    return falling ? b - a : a - b;
  };
  const sort = (table, column) => {
    const head = table.tHead.rows[0].cells[column], body = table.tBodies[0];
    const falling = head.getAttribute("aria-sort") ? head.getAttribute("aria-sort") === "ascending" : column > 0;
    all("[aria-sort]", table).forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", falling ? "descending" : "ascending");
    [...body.rows].sort((a, b) => order(a.cells[column], b.cells[column], falling)).forEach((row) => body.append(row));
  };
  const markdown = (table) => {
    const line = (cells) => `| ${cells.map((text) => text.replaceAll("|", "\\|")).join(" | ")} |`;
    const rows = [...table.rows].map((row) => line([...row.cells].map(words)));
    rows.splice(1, 0, `|---${"|---:".repeat(table.rows[0].cells.length - 1)}|`);
    return `${rows.join("\n")}\n`;
  };
  const copy = async (text) => {
    try { await navigator.clipboard.writeText(text); return; } catch { /* no right to it: the old way */ }
    const area = document.createElement("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  };
  all("main table").forEach((table) => {
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "sort";
      button.append(...head.childNodes);
      button.addEventListener("click", () => sort(table, column));
      head.append(button);
    });
    const button = document.createElement("button");
    button.type = "button";
    button.className = "copy";
    button.textContent = "Copy as Markdown";
    button.addEventListener("click", async () => {
      await copy(markdown(table));
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = "Copy as Markdown"; }, 1500);
    });
    table.parentElement.before(button);
  });
})();
