"use strict";
// Plots, sorting and the theme. Everything a reader needs is in the page without this script:
// tables, words and the downloads of figures (data: links).

const root = document.documentElement;
const specs = JSON.parse(document.getElementById("figures").textContent);
const drawn = new Map(); // plot element → key of the variant that it shows

/* ------------------------------------------------------------------ colours of the theme */
function colour(name) {
  const probe = document.createElement("i");
  probe.style.color = `var(--${name})`;
  document.body.append(probe);
  const value = getComputedStyle(probe).color;
  probe.remove();
  return value;
}

// A figure names its colours ("s0", "teacher"); the theme says what they are.
function themed(value, key, palette) {
  if (Array.isArray(value)) return value.map((item) => themed(item, key, palette));
  if (value && typeof value === "object") {
    return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, themed(v, k, palette)]));
  }
  return key.endsWith("color") && value in palette ? palette[value] : value;
}

function palette() {
  const names = ["paper", "card", "ink", "soft", "line", "faint", "accent", "teacher"];
  for (let i = 0; i < 8; i += 1) names.push(`s${i}`);
  return Object.fromEntries(names.map((name) => [name, colour(name)]));
}

/* ------------------------------------------------------------------ plots */
function draw(element, key, width) {
  const figure = themed(specs[key], "", palette());
  const room = width || element.clientWidth;
  const layout = { ...figure.layout, width: room, autosize: false };
  if (room < 480) {
    layout.dragmode = false; // a finger scrolls the page
    layout.margin = { ...layout.margin, l: Math.min(layout.margin.l, 96), r: 8 };
  }
  drawn.set(element, key);
  const config = { displayModeBar: false, displaylogo: false, showTips: false };
  // At another width the legend takes other lines: react would keep the room that it took before.
  const plot = element.layout?.width === room ? Plotly.react : Plotly.newPlot;
  return plot(element, figure.data, layout, config);
}

function redraw(width) {
  return Promise.all([...drawn].map(([element, key]) => draw(element, key, width)));
}

const plots = [...document.querySelectorAll(".plot")];
const ready = Promise.all(plots.map((element) => draw(element, element.dataset.figure)));
ready.then(() => { root.dataset.drawn = String(plots.length); });

let waiting = 0;
addEventListener("resize", () => {
  clearTimeout(waiting);
  waiting = setTimeout(redraw, 120);
});

for (const input of document.querySelectorAll(".pick input")) {
  input.addEventListener("change", () => {
    for (const element of document.querySelectorAll(`.plot[data-group="${input.name}"]`)) {
      draw(element, `${element.dataset.base}-${input.value}`);
    }
  });
}

for (const button of document.querySelectorAll("button[data-svg]")) {
  button.addEventListener("click", () => {
    const element = document.getElementById(button.dataset.svg);
    const { width, height } = element.getBoundingClientRect();
    Plotly.downloadImage(element, { format: "svg", filename: drawn.get(element), width, height });
  });
}

/* ------------------------------------------------------------------ theme and print */
const toggle = document.getElementById("theme");
const system = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);

function label() {
  toggle.textContent = isDark() ? "Light" : "Dark";
  toggle.setAttribute("aria-label", `Change to ${isDark() ? "light" : "dark"} colours`);
}

toggle.hidden = false;
toggle.addEventListener("click", () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  label();
  redraw();
});
system.addEventListener("change", () => { label(); redraw(); });
label();

addEventListener("beforeprint", () => {
  root.dataset.before = root.dataset.theme || "";
  root.dataset.theme = "light";
  for (const [element, key] of drawn) draw(element, key, element.closest(".plots") ? 330 : 680);
});
addEventListener("afterprint", () => {
  if (root.dataset.before) root.dataset.theme = root.dataset.before;
  else delete root.dataset.theme;
  redraw();
});

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
