// One picture, large, with its regions.

function openLarge(number) {
  state.open = number;
  drawLarge();
  if (!$("large").open) $("large").showModal();
}
function turn(by) {
  const next = clamp(state.open + by, 0, state.shown.length - 1);
  if (next !== state.open) { state.open = next; drawLarge(); }
}
function drawLarge() {
  const row = state.shown[state.open];
  $("large-name").textContent = row.name;
  $("large-place").textContent = `${state.open + 1} of ${state.shown.length}`;
  const panels = row.picture ? titles : [];
  $("large-panels").replaceChildren(...panels.map((title, index) => {
    const holder = crop(row, String(index), 0);
    if ((index === 0 || title === "Anomaly map") && $("boxes").checked) addBoxes(holder, row);
    return make("figure", { "aria-label": title }, holder);
  }));
  if (!panels.length && row.size && (row.regions || []).length) {
    const holder = make("div", { class: "crop", style: `aspect-ratio:${row.size[0]}/${row.size[1]};max-height:60vh` });
    addBoxes(holder, row);
    $("large-panels").append(make("figure", {}, holder, make("figcaption", {}, "Regions; no picture was drawn")));
  }
  drawFacts();
}
function addBoxes(holder, row) {
  const svg = draw("svg", { viewBox: "0 0 1 1", preserveAspectRatio: "none", "aria-hidden": "true" });
  for (const [number, [x, y, width, height]] of (row.regions || []).entries()) {
    for (const kind of ["box-back", "box"]) svg.append(draw("rect", { class: kind, x, y, width, height }));
    holder.append(make("span", { class: "box-tag", style: `left:${100 * x}%;top:max(16px, ${100 * y}%)` }, String(number + 1)));
  }
  holder.append(svg);
}
function facts(entries) {
  return make("dl", { class: "facts" }, ...entries.filter(([, value]) => value !== "" && value !== null && value !== undefined)
    .flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]));
}
function table(head, lines, numeric = []) {
  const side = (index) => (numeric.includes(index) ? "n" : null);
  return make("div", { class: "scroll" }, make("table", {},
    make("thead", {}, make("tr", {}, ...head.map((text, index) => make("th", { class: side(index), scope: "col" }, text)))),
    make("tbody", {}, ...lines.map((line) => make("tr", {}, ...line.map((value, index) => make("td", { class: side(index) }, value)))))));
}
function drawFacts() {
  const row = state.shown[state.open], [kind, text] = verdict(row), wrong = mistake(row);
  const lower = good && row.score !== null ? goodScores.length - exceeding(goodScores, row.single) : null;
  const list = facts([
    ["decision", make("span", {}, make("span", { class: `decision ${kind}` }, text), wrong ? " " : "", wrong ? make("span", { class: "wrong" }, wrong) : "")],
    ["score", row.score === null ? "" : `${trim(row.score)} (threshold ${trim(state.threshold)})`],
    ["truth", row.truth === null ? "" : row.truth ? "defect" : "good"],
    ["called", kind === "flagged" ? row.words : ""],
    ["good parts that score lower", lower === null ? "" : `${lower} of ${goodScores.length} (${percent(lower, goodScores.length)})`],
    ["error", row.error],
    ["file", row.path],
    ["picture", row.size ? `${row.size[0]} x ${row.size[1]} pixels` : ""],
  ]);
  const found = row.regions || [];
  const regions = found.length ? table(["", "defect", "left, top", "width x height", "share", "peak"],
    found.map((one, index) => [String(index + 1), one[6], `${one[7]}, ${one[8]}`, `${one[9]} x ${one[10]}`, percent(one[5], 1), one[4].toFixed(2)]), [4, 5]) : null;
  $("large-facts").replaceChildren(...[list, regions].filter(Boolean));
}
function listenLarge() {
  const dialog = $("large");
  $("previous").addEventListener("click", () => turn(-1));
  $("next").addEventListener("click", () => turn(1));
  $("close").addEventListener("click", () => dialog.close());
  $("boxes").addEventListener("change", drawLarge);
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener("keydown", (event) => {
    const by = { ArrowRight: 1, ArrowLeft: -1, PageDown: 10, PageUp: -10, Home: -Infinity, End: Infinity }[event.key];
    if (by === undefined) return;
    event.preventDefault();
    turn(by);
  });
  dialog.addEventListener("close", () => {
    const { columns, pitch } = layout(), top = $("grid").getBoundingClientRect().top + Math.floor(state.open / columns) * pitch;
    if (top < 0 || top + pitch > window.innerHeight) window.scrollBy(0, top - window.innerHeight / 3);
    place();
    const cell = cells.get(state.open);
    if (cell) cell.firstChild.focus({ preventScroll: true });
  });
}
