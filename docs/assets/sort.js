// Tables of twelve rows and more sort by a click, or Enter, on a heading. Nothing is loaded from
// elsewhere, and without it the tables are as they were.
(() => {
  const value = (row, column) => row.cells[column].textContent.trim();
  const compare = (a, b) => a.localeCompare(b, undefined, { numeric: true });

  for (const table of document.querySelectorAll(".md-typeset table:not([class])")) {
    const body = table.tBodies[0];
    if (!body || body.rows.length < 12) continue; // short ones are read at a glance
    [...table.tHead.rows[0].cells].forEach((cell, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "sort";
      button.append(...cell.childNodes);
      cell.append(button);
      button.addEventListener("click", () => {
        const descending = cell.getAttribute("aria-sort") === "ascending";
        for (const other of cell.parentNode.cells) other.removeAttribute("aria-sort");
        cell.setAttribute("aria-sort", descending ? "descending" : "ascending");
        const rows = [...body.rows].sort((a, b) => compare(value(a, column), value(b, column)));
        body.append(...(descending ? rows.reverse() : rows));
      });
    });
  }
})();
