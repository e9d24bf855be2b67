"use strict";
// Sorting, choices, copies and the theme. Everything a reader needs is in the page without this
// script: tables, words, plots and the downloads of figures (data: links).

const root = document.documentElement;
for (const element of document.querySelectorAll("[hidden]:not([data-choice])")) {
  element.hidden = false; // what does nothing without this script
}

/* ------------------------------------------------------------------ plots */
for (const input of document.querySelectorAll(".pick input")) {
  input.addEventListener("change", () => {
    for (const drawing of document.querySelectorAll(`[data-group="${input.name}"]`)) {
      drawing.hidden = drawing.dataset.choice !== input.value;
    }
  });
}

function save(name, kind, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: kind }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

// A plot's colours and texts come from the page's style: what is saved gets them by name.
const LOOK = ["fill", "stroke", "stroke-width", "stroke-dasharray", "opacity", "font-size",
  "font-family", "font-weight", "text-anchor"];

function dressed(element) {
  const copy = element.cloneNode(true);
  const own = [element, ...element.querySelectorAll("*")];
  [copy, ...copy.querySelectorAll("*")].forEach((part, index) => {
    const style = getComputedStyle(own[index]);
    part.removeAttribute("class");
    part.setAttribute("style", LOOK.map((key) => `${key}:${style.getPropertyValue(key)}`).join(";"));
  });
  return copy;
}

function saved(plot) {
  const shown = [...plot.querySelectorAll("svg.drawing")].find((svg) => svg.checkVisibility());
  const { width, height } = shown.getBoundingClientRect();
  const legend = [...plot.querySelectorAll(".legend li")];
  const top = 40 + 20 * legend.length;
  const whole = document.createElementNS(shown.namespaceURI, "svg");
  whole.setAttribute("width", width + 70);
  whole.setAttribute("height", height + top + 56);
  const drawing = dressed(shown);
  const place = { x: 50, y: top, width, height, overflow: "visible" };
  for (const [key, value] of Object.entries(place)) drawing.setAttribute(key, value);
  legend.forEach((entry, index) => {
    const swatch = dressed(entry.querySelector("svg"));
    swatch.setAttribute("x", 10);
    swatch.setAttribute("y", 10 + 20 * index);
    const name = document.createElementNS(shown.namespaceURI, "text");
    name.textContent = entry.textContent;
    name.setAttribute("x", 32);
    name.setAttribute("y", 21 + 20 * index);
    name.setAttribute("style", `font:13px sans-serif;fill:${getComputedStyle(entry).color}`);
    whole.append(swatch, name);
  });
  whole.append(drawing);
  return new XMLSerializer().serializeToString(whole);
}

for (const button of document.querySelectorAll("button[data-svg]")) {
  button.addEventListener("click", () => {
    const name = button.dataset.svg.replace(/^plot-/, "");
    save(`${name}.svg`, "image/svg+xml", saved(document.getElementById(button.dataset.svg)));
  });
}

/* ------------------------------------------------------------------ predictive values */
const prevalence = document.getElementById("prevalence");
if (prevalence) {
  const rows = [...document.querySelectorAll("#predictive tbody tr")];
  const numbers = JSON.parse(document.getElementById("worth").textContent);
  const written = rows.map((row) => [...row.cells].slice(-3).map((cell) => cell.innerHTML));
  const values = rows.map((row) => [...row.cells].slice(-3).map((cell) => cell.dataset.value));
  const percent = (value) => (100 * value).toFixed(1);
  const bayes = (hit, spared, share) => {
    const right = hit * share;
    const all = right + (1 - spared) * (1 - share);
    return all ? right / all : 0;
  };
  const show = (cell, value, text, note) => {
    cell.dataset.value = value;
    const [main, small] = cell.querySelectorAll("span span");
    main.textContent = text;
    small.textContent = note;
  };
  prevalence.addEventListener("input", () => {
    const share = Number(prevalence.value) / 100;
    const valid = prevalence.value !== "" && share > 0 && share < 1;
    document.getElementById("reckoned").textContent =
      valid ? `at ${prevalence.value} %` : "as in the test images";
    rows.forEach((row, index) => {
      const cells = [...row.cells].slice(-3);
      if (!valid) {
        cells.forEach((cell, k) => {
          cell.innerHTML = written[index][k];
          cell.dataset.value = values[index][k];
        });
        return;
      }
      const [sensitivity, specificity] = numbers[index];
      const worth = [[sensitivity, specificity, share], [specificity, sensitivity, 1 - share]];
      show(cells[0], share, `${prevalence.value} %`, "as set above");
      worth.forEach(([hit, spared, of], k) => {
        const [value, low, high] = hit.map((part, bound) => bayes(part, spared[bound], of));
        show(cells[k + 1], value, `${percent(value)} %`, `${percent(low)} to ${percent(high)} %`);
      });
    });
  });
}

/* ------------------------------------------------------------------ theme */
const toggle = document.getElementById("theme");
const system = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);

function label() {
  toggle.textContent = isDark() ? "Light" : "Dark";
  toggle.setAttribute("aria-label", `Change to ${isDark() ? "light" : "dark"} colours`);
}

toggle.addEventListener("click", () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  label();
});
system.addEventListener("change", label);
label();

for (const button of document.querySelectorAll("[data-print]")) {
  button.addEventListener("click", () => print());
}

/* ------------------------------------------------------------------ copies */
function markdown(table) {
  const plain = (text) => text.replace(/([\\`*_{}[\]<>#|~$])/g, "\\$1").replace(/\s+/g, " ").trim();
  const cell = (part) => {
    const small = part.querySelector(".small");
    const note = small ? small.textContent : "";
    const text = part.textContent.slice(0, part.textContent.length - note.length);
    return plain(note ? `${text} (${note})` : text);
  };
  const line = (cells) => `| ${cells.join(" | ")} |`;
  const heads = [...table.tHead.rows[0].cells];
  return [
    line(heads.map((head) => plain(head.textContent))),
    `|${heads.map((head) => (head.classList.contains("num") ? "---:" : "---")).join("|")}|`,
    ...[...table.tBodies[0].rows].map((row) => line([...row.cells].map(cell))),
  ].join("\n");
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch { // a page from a disk may not be let at the clipboard
    const area = document.createElement("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
}

for (const button of document.querySelectorAll("button[data-copy]")) {
  button.addEventListener("click", async () => {
    await copy(markdown(document.getElementById(button.dataset.copy).querySelector("table")));
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
}

/* ------------------------------------------------------------------ sorting */
function compare(a, b) {
  if (a === b) return 0;
  if (a === "") return 1; // what was not measured stays at the end
  if (b === "") return -1;
  const [x, y] = [Number(a), Number(b)];
  return Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b) : x - y;
}

for (const header of document.querySelectorAll("th[data-sort]")) {
  header.querySelector("button").addEventListener("click", () => {
    const rising = header.getAttribute("aria-sort") !== "ascending";
    for (const other of header.parentElement.children) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", rising ? "ascending" : "descending");
    const body = header.closest("table").tBodies[0];
    const index = header.cellIndex;
    const value = (row) => row.cells[index].dataset.value;
    const rows = [...body.rows].sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      return x === "" || y === "" || rising ? compare(x, y) : compare(y, x);
    });
    body.append(...rows);
  });
}
