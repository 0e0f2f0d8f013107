// Sorting of tables and copying of text. Everything here is an addition: without scripts the page
// shows the same tables and commands.
"use strict";

(() => {
  // "25.19 ± 1.04", "1,000", "-inf", "0.9 [0.8, 1.0]"; but neither "3D U-Net" nor "FAILED: ..."
  const NUMBER = /^([-+]?)(inf|[\d,]*\.?\d+(?:e[-+]?\d+)?)\s*(?:[±[(/%*†].*)?$/i;
  const WORDS = new Intl.Collator("en", { numeric: true });

  function number(text) {
    const match = NUMBER.exec(text);
    if (!match) return null;
    const size = match[2].toLowerCase() === "inf" ? Infinity : Number(match[2].replaceAll(",", ""));
    return match[1] === "-" ? -size : size;
  }

  // Cells without a number ("n/a", "FAILED: ...") come last in either direction.
  function compare(a, b, sign) {
    if (a.value === null || b.value === null) return (a.value === null) - (b.value === null);
    if (a.value === b.value) return a.place - b.place;
    const rising = typeof a.value === "number" ? a.value - b.value : WORDS.compare(a.value, b.value);
    return sign * rising || a.place - b.place;
  }

  function sortTable(table, column, sign) {
    const body = table.tBodies[0];
    const rows = [...body.rows].map((row) => ({ row, text: row.cells[column].textContent.trim() }));
    const numbers = rows.map(({ text }) => number(text));
    const known = rows.filter(({ text }) => text !== "" && text !== "n/a").length;
    const numeric = numbers.filter((n) => n !== null).length * 2 > known;
    rows.forEach((entry, place) => {
      entry.place = Number(entry.row.dataset.place);
      entry.value = numeric ? numbers[place] : entry.text === "n/a" ? null : entry.text;
    });
    rows.sort((a, b) => compare(a, b, sign));
    body.append(...rows.map(({ row }) => row));
  }

  function makeSortable(table) {
    if (table.tBodies[0].rows.length < 2) return;
    [...table.tBodies[0].rows].forEach((row, place) => (row.dataset.place = place));
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.title = "Sort by this column";
      button.textContent = head.textContent.trim() || "Row";
      head.replaceChildren(button);
      // the first click puts the best on top: of a quality or another number the largest
      const falls =
        head.dataset.better === "higher" ||
        (head.dataset.better !== "lower" && head.classList.contains("number"));
      button.addEventListener("click", () => {
        const now = head.ariaSort;
        const descending = now ? now === "ascending" : falls;
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", descending ? "descending" : "ascending");
        sortTable(table, column, descending ? -1 : 1);
      });
    });
  }

  function addCopyButton(block) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "copy";
    button.textContent = "Copy";
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(block.textContent);
        button.textContent = "Copied";
      } catch {
        // where the browser keeps the clipboard to itself, the text is selected for Ctrl+C
        getSelection().selectAllChildren(block);
        button.textContent = "Selected";
      }
      setTimeout(() => (button.textContent = "Copy"), 2000);
    });
    block.before(button);
  }

  // What is wider than its frame says so until its end is seen.
  function tellWidth(scroll) {
    const update = () => {
      const left = scroll.scrollWidth - scroll.clientWidth - scroll.scrollLeft;
      scroll.parentNode.classList.toggle("more", left > 2);
    };
    scroll.addEventListener("scroll", update, { passive: true });
    new ResizeObserver(update).observe(scroll);
  }

  document.querySelectorAll("table").forEach(makeSortable);
  document.querySelectorAll(".beyond > .scroll").forEach(tellWidth);
  if (innerWidth < 1100) document.querySelector("nav details")?.removeAttribute("open");
  document.querySelectorAll("pre").forEach(addCopyButton);
  document.querySelectorAll(".scripted").forEach((part) => (part.hidden = false));
})();
