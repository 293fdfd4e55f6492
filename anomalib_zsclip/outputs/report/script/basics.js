// What the other parts share: the data of the page, elements, texts, the clipboard.

const data = JSON.parse(document.getElementById("data").textContent);
const run = data.run, rows = data.rows, good = run.good;
const [panelWidth, panelHeight] = data.pictures.panel;
const titles = data.pictures.titles;
const $ = (id) => document.getElementById(id);

/** An element with attributes and children; texts become text, never markup. */
function make(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}
function draw(name, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}
const trim = (value) => String(Number(value.toFixed(6)));
const short = (value) => (value === null ? "–" : value.toFixed(3));
const percent = (part, whole) => (whole ? `${(100 * part / whole).toFixed(1)}\u00a0%` : "–");
const round = (value, digits) => Number(value.toFixed(digits));
const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

async function copy(text, button) {
  let done = true;
  try {
    await navigator.clipboard.writeText(text);
  } catch {  // pages that come over plain http have no clipboard
    const area = make("textarea", { style: "position:fixed;opacity:0" });
    area.value = text;
    (document.querySelector("dialog[open]") || document.body).append(area);
    area.select();
    done = document.execCommand("copy");
    area.remove();
  }
  const before = button.dataset.label || button.textContent;
  button.dataset.label = before;
  button.textContent = done ? "Copied" : "Select and copy by hand";
  setTimeout(() => { button.textContent = before; }, 1500);
}
