// Drawing --------------------------------------------------------------------------------------------------------------

function show(id, ...children) {
  $(id).replaceChildren(...children);
}

function drawRead() {
  const { read } = state;
  const row = read.map.rows.indexOf(chosenLayer());
  const styles = read.token_styles[row];
  const values = read.map.values[row];
  const spans = read.pieces.map((piece) => {
    if (piece.token === null) return el("span", { class: "unread" }, piece.text);
    const attributes = { style: styles[piece.token], title: number(values[piece.token]) };
    if (piece.text === "") Object.assign(attributes, { class: "special", "data-name": read.map.columns[piece.token] });
    return el("span", attributes, piece.text);
  });
  show("tokens", ...spans);
  $("tokens-caption").textContent =
    `${chosenConcept()} at layer ${chosenLayer()}, in ${read.unit}. Orange: above, blue: below ${read.centre}. ${read.notice || ""}`;
  $("worth").textContent = state.about.concepts.find(({ name }) => name === chosenConcept()).worth;
  const rows = read.map.columns.map((token, place) =>
    el("tr", {}, el("th", { scope: "row" }, token), el("td", { class: "number", style: styles[place] }, number(values[place]))));
  const head = el("tr", {}, el("th", { scope: "col" }, "token"), el("th", { scope: "col" }, chosenConcept()));
  show("tokens-table", el("table", {}, el("thead", {}, head), el("tbody", {}, ...rows)));
  show("map", map(read.map, chosenLayer()));
  $("map-caption").textContent =
    `Rows are layers (0 is the embedding), columns tokens; in ${read.unit}. Uncoloured: ${read.centre}. ${read.notice || ""}`;
}

/** A map of layers × tokens as a table with its numbers; the deepest layer is on top, as the stream rises through them. */
function map(cells, chosen = null) {
  const head = cells.columns.map((name) => el("th", { scope: "col", title: name }, name));
  const written = column(cells.values);
  const rows = cells.rows.map((layer, row) => {
    const data = cells.values[row].map((value, column) =>
      el("td", { style: cells.styles[row][column], class: cells.marked?.[row][column] ? "marked" : "" }, written(value)));
    return el("tr", { class: layer === chosen ? "chosen" : "" }, el("th", { scope: "row" }, String(layer)), ...data);
  });
  const first = el("th", { scope: "col" }, "layer");
  return el("table", { class: "map" }, el("thead", {}, el("tr", {}, first, ...head)), el("tbody", {}, ...rows.reverse()));
}

function drawAttend() {
  const { attend } = state;
  if (!attend.words.length) {
    show("attention");
    $("attention-caption").textContent = attend.notice;
    $("magnitudes-caption").textContent = "";
    return;
  }
  const lam = signed(attend.strength, 1);
  const sides = [["Standard attention", attend.standard], [`Valuation attention, λ = ${lam}`, attend.valued], ["Change", attend.change]];
  show("attention", ...sides.map(([title, cells]) => matrix(title, attend.words, cells)), magnitudes(attend, lam));
  const whose = attend.head === null ? "mean over heads" : `head ${attend.head}`;
  $("attention-caption").textContent =
    `How much the word of a row attends to that of a column in block ${attend.block}, ${whose}; point at a cell for its number. ` +
    `The valuation reads ${state.about.valued.join(", ")} in every block. What is missing to 1 goes to other tokens, ` +
    `often the first. ${attend.notice || ""}`;
  $("magnitudes-caption").textContent =
    "Word magnitude: how much attention writes at a word, the norm of its output there (grey: standard, orange: valued). Gain is " +
    "the change of a word’s share of the text’s mean. Random valuations change it too: emoprobe claims has the controls.";
}

function matrix(title, words, cells) {
  const head = words.map((word) => el("th", { scope: "col" }, el("span", {}, word)));
  const rows = words.map((word, row) =>
    el("tr", {}, el("th", { scope: "row" }, word), ...words.map((seen, column) => {
      if (column > row && cells.values[row][column] === 0) return el("td", { class: "later" });
      const value = number(cells.values[row][column], 2);
      const style = cells.styles[row][column];
      return el("td", { style, title: `${word} → ${seen}: ${value}` }, el("span", { class: "unseen" }, value));
    })));
  const table = el("table", { class: "matrix" }, el("caption", { class: "unseen" }, title),
    el("thead", {}, el("tr", {}, el("td", {}), ...head)), el("tbody", {}, ...rows));
  return titled(title, table);
}

function magnitudes(attend, lam) {
  const most = Math.max(...attend.magnitudes.flat());
  const written = column(attend.magnitudes);
  const bar = (value) => el("span", { class: "bar", style: `width:${(100 * value) / most}%` });
  const rows = attend.words.map((word, place) => {
    const [before, after] = attend.magnitudes[place];
    const bars = el("td", { class: "length", "aria-hidden": "true" }, bar(before), bar(after));
    const numbers = [written(before), written(after), `${signed(100 * attend.gains[place], 0)} %`];
    return el("tr", {}, el("th", { scope: "row" }, word), bars, ...numbers.map((text) => el("td", { class: "number" }, text)));
  });
  const names = ["word", "", "standard", `λ = ${lam}`, "gain"];
  const head = names.map((name) => (name ? el("th", { scope: "col" }, name) : el("td", { "aria-hidden": "true" })));
  const table = el("table", { class: "bars" }, el("thead", {}, el("tr", {}, ...head)), el("tbody", {}, ...rows));
  return titled("Word magnitudes", table);
}

/** A table below its title, in a frame that can be scrolled by keyboard. */
function titled(title, table) {
  const frame = el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": title }, table);
  return el("div", {}, el("h3", {}, title), frame);
}

function drawContinue() {
  const { go_on: found } = state;
  const side = (title, written) =>
    el("div", {}, el("h3", {}, title), el("p", { class: "written", dir: "auto" }, el("span", { class: "given" }, tail(found.prompt)), written));
  const changes = [];
  if (state.about.valued.length && found.strength) changes.push(`λ = ${signed(found.strength, 1)}`);
  if (found.steering) changes.push(`${found.concept} ${signed(found.steering)} at layer ${found.layer}`);
  show("continuation", side("Untouched", found.untouched), side(changes.join(", ") || "No intervention", found.changed));
  const same = !found.writing && found.untouched === found.changed ? "Both are the same. " : "";
  $("continuation-caption").textContent =
    `${same}The likeliest token each time. Steering is in fractions of the mean residual norm. ${found.notice || ""}`;
}

const tail = (prompt) => (prompt.length > 160 ? `…${prompt.slice(-160)}` : prompt);

function drawCompare() {
  const { compare } = state;
  if (!compare) {
    show("difference");
    $("difference-caption").textContent = "";
    return;
  }
  show("difference", map(compare.map, chosenLayer()));
  $("difference-caption").textContent =
    `${compare.unit}, a being the text above. Underlined: outside 95 % of ${compare.randoms} random directions of equal norm. ` +
    `${compare.report} ${compare.notice || ""}`;
}

