// Filters, order, and the cards, of which only those on the screen exist.

function options(select, entries) {
  $(select).replaceChildren(...entries.map(([value, text]) => make("option", { value }, text)));
}
function tally(values) {
  const found = new Map();
  for (const value of values) found.set(value, (found.get(value) || 0) + 1);
  return [...found].sort((one, other) => order.compare(one[0], other[0]));
}
const hasPictures = rows.some((row) => row.picture);
function fillFilters() {
  const broken = rows.length - scored.length;
  options("f-decision", [["all", "all"], ["flagged", "▲ anomalous"], ["normal", "● normal"], ...(broken ? [["broken", "no score"]] : [])]);
  options("f-truth", [["all", "all"], ["defect", "defect"], ["good", "good"], ["misses", "misses"], ["alarms", "false alarms"], ["right", "rightly judged"]]);
  $("l-truth").hidden = !hasTruth;
  const folders = tally(rows.map((row) => row.folder));
  options("f-folder", [["all", "all"], ...folders.map(([name, count]) => [`=${name}`, `${name || "."} (${count})`])]);
  $("l-folder").hidden = folders.length < 2;
  const words = tally(rows.map((row) => row.word).filter(Boolean));
  options("f-word", [["all", "all"], ...words.map(([name, count]) => [`=${name}`, `${name} (${count})`])]);
  $("l-word").hidden = !words.length;
  options("f-sort", [["high", "highest score first"], ["low", "lowest score first"], ["doubt", "closest to the line"], ["name", "name"], ["folder", "folder"],
    ...(hasTruth ? [["truth", "defects first"]] : [])]);
  options("f-view", [["strip", "all panels"], ...titles.map((title, index) => [String(index), title.toLowerCase()])]);
  $("l-view").hidden = !hasPictures || titles.length < 2;
  for (const id of ["f-decision", "f-truth", "f-folder", "f-word", "f-sort"]) $(id).addEventListener("change", () => { filter(); scrollToGrid(); });
  $("f-text").addEventListener("input", () => { filter(); scrollToGrid(); });
  $("f-view").addEventListener("change", () => { clear(); place(); });
  $("filters").addEventListener("submit", (event) => event.preventDefault());
}
const byScore = (sign) => (one, other) =>
  (one.score === null) - (other.score === null) || sign * (one.single - other.single) || one.index - other.index;
const orders = {
  high: byScore(-1), low: byScore(1),
  doubt: (one, other) => (one.score === null) - (other.score === null)
    || Math.abs(one.single - state.threshold) - Math.abs(other.single - state.threshold) || one.index - other.index,
  name: (one, other) => one.nameRank - other.nameRank,
  folder: (one, other) => one.folderRank - other.folderRank || byScore(-1)(one, other),
  truth: (one, other) => (other.truth ?? -1) - (one.truth ?? -1) || byScore(-1)(one, other),
};
const sorted = {};
function inOrder(name) {
  if (name === "doubt") return [...rows].sort(orders.doubt);
  if (!sorted[name]) {
    if (name === "name") [...rows].sort((one, other) => order.compare(one.name, other.name) || one.index - other.index).forEach((row, rank) => { row.nameRank = rank; });
    if (name === "folder") {
      const ranks = new Map(tally(rows.map((row) => row.folder)).map(([folder], rank) => [folder, rank]));
      for (const row of rows) row.folderRank = ranks.get(row.folder);
    }
    sorted[name] = [...rows].sort(orders[name]);
  }
  return sorted[name];
}
function filter() {
  const text = $("f-text").value.trim().toLowerCase();
  const [decision, truth, folder, word] = ["f-decision", "f-truth", "f-folder", "f-word"].map((id) => $(id).value);
  state.shown = inOrder($("f-sort").value).filter((row) => {
    if (text && !row.text.includes(text)) return false;
    if (folder !== "all" && row.folder !== folder.slice(1)) return false;
    if (word !== "all" && row.word !== word.slice(1)) return false;
    const flagged = isFlagged(row);
    if (decision === "broken" ? row.score !== null : decision !== "all" && (row.score === null || flagged !== (decision === "flagged"))) return false;
    if (truth === "all") return true;
    if (row.truth === null || row.score === null) return false;
    return { defect: row.truth, good: !row.truth, misses: row.truth && !flagged, alarms: !row.truth && flagged, right: Boolean(row.truth) === flagged }[truth];
  });
  const all = `${rows.length} picture${rows.length === 1 ? "" : "s"}`;
  $("found").textContent = state.shown.length === rows.length ? all : `${state.shown.length} of ${all}`;
  clear();
  place();
}
function scrollToGrid() {
  const top = $("filters").getBoundingClientRect().top;
  if (top < 0) window.scrollBy(0, top - 8);
}

// Only the cards on the screen exist: 20,000 pictures make no more elements than 40.
const cells = new Map();
const gapBetween = 12, textHeight = 84;
const layout = () => {
  const width = $("grid").clientWidth, view = hasPictures ? $("f-view").value : "none";
  const least = view === "strip" ? 46 + 85 * Math.max(2, titles.length) : 190;
  const columns = Math.max(1, Math.floor((width + gapBetween) / (Math.min(least, width) + gapBetween)));
  const cell = (width - gapBetween * (columns - 1)) / columns;
  const shape = panelHeight / panelWidth;
  const image = view === "none" ? 0 : Math.round((cell - 7) * (view === "strip" ? shape / titles.length : shape));
  return { columns, cell, image, view, pitch: image + textHeight + gapBetween };
};
function clear() {
  for (const node of cells.values()) node.remove();
  cells.clear();
}
function place() {
  if ($("pictures").hidden) return;
  const grid = $("grid"), size = layout();
  const lines = Math.ceil(state.shown.length / size.columns);
  grid.style.height = `${lines * size.pitch}px`;
  const top = -grid.getBoundingClientRect().top;
  const last = clamp(Math.ceil((top + window.innerHeight) / size.pitch) + 1, 1, lines);
  const first = clamp(Math.floor(top / size.pitch) - 1, 0, Math.max(0, last - 1));
  for (const [number, node] of cells) {
    const line = Math.floor(number / size.columns);
    if ((line < first || line >= last) && !node.contains(document.activeElement)) { node.remove(); cells.delete(number); }
  }
  for (let number = first * size.columns; number < Math.min(last * size.columns, state.shown.length); number++) {
    if (cells.has(number)) continue;
    const node = makeCard(number, size);
    const x = (number % size.columns) * (size.cell + gapBetween), y = Math.floor(number / size.columns) * size.pitch;
    node.style.cssText = `transform:translate(${x}px,${y}px);width:${size.cell}px;height:${size.pitch - gapBetween}px`;
    cells.set(number, node);
    const after = [...cells.keys()].filter((other) => other > number);
    grid.insertBefore(node, after.length ? cells.get(Math.min(...after)) : null);
  }
}
/** A window on the drawn strip: one panel of it, or all, without the caption below. */
function crop(row, panel, height) {
  const all = panel === "strip", wide = all ? 100 : 100 * titles.length;
  const holder = make("div", { class: "crop", style: height ? `height:${height}px` : `aspect-ratio:${panelWidth}/${panelHeight}` });
  if (!row.picture) {
    holder.append(make("span", { class: "none" }, row.error ? "cannot be read" : "no picture"));
    return holder;
  }
  const image = make("img", { loading: "lazy", decoding: "async", alt: "", style: `width:${wide}%;left:${all ? 0 : -100 * Number(panel)}%` });
  image.addEventListener("error", () => holder.replaceChildren(make("span", { class: "none" }, "picture not found")));
  image.src = row.picture;
  holder.append(image);
  return holder;
}
function verdict(row) {
  if (row.score === null) return ["", row.error ? "cannot be read" : "no score"];
  return isFlagged(row) ? ["flagged", "▲ anomalous"] : ["normal", "● normal"];
}
function mistake(row) {
  if (row.truth === null || row.score === null) return "";
  const flagged = isFlagged(row);
  return row.truth && !flagged ? "miss" : !row.truth && flagged ? "false alarm" : "";
}
function makeCard(number, size) {
  const row = state.shown[number];
  const card = make("button", { type: "button", class: "card", title: row.path });
  if (size.image) card.append(crop(row, size.view, size.image));
  card.append(make("div", { class: "words" },
    make("div", { class: "name" }, row.name),
    make("div", { class: "line" }, make("span", { class: "verdict-text" }), make("span", { class: "number" }, row.score === null ? "" : row.score.toFixed(4))),
    make("div", { class: "line quiet" }, make("span", { class: "defect-text" }), make("span", {}, row.folder))));
  card.addEventListener("click", () => openLarge(number));
  const cell = make("div", { class: "cell", role: "listitem", "aria-posinset": number + 1, "aria-setsize": state.shown.length }, card);
  cell.row = row;
  colour(cell);
  return cell;
}
function colour(cell) {
  const row = cell.row, card = cell.firstChild, [kind, text] = verdict(row), wrong = mistake(row);
  card.classList.toggle("flagged", kind === "flagged");
  card.classList.toggle("normal", kind === "normal");
  const line = card.querySelector(".verdict-text");
  line.replaceChildren(make("span", { class: `decision ${kind}` }, text), ...(wrong ? [" ", make("span", { class: "wrong" }, wrong)] : []));
  // What a defect is called says nothing about a part that is judged to have none.
  card.querySelector(".defect-text").textContent = kind === "flagged" ? row.words.split(", ")[0] : row.error;
}
function recolour() {
  for (const cell of cells.values()) colour(cell);
  if ($("large").open) drawFacts();
}
