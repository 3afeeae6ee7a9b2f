// The explorer's page: asks, draws the answers, keeps runs. All that comes from outside is put in as text, never as markup;
// colours come ready from the server. Nothing here knows how anything is computed.
"use strict";

const $ = (id) => document.getElementById(id);
const state = { about: null, read: null, attend: null, go_on: null, compare: null, kept: [] };

/** Make an element; children are elements or text. */
function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "style") made.style.cssText = value;
    else if (name === "onclick") made.addEventListener("click", value);
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

function number(value, digits = 3) {
  if (value === null) return "";
  const written = Math.abs(value) >= 1e5 ? value.toExponential(1) : String(Number(value.toPrecision(digits)));
  return written.replace("-", "−");
}

/** Write numbers that stand beside each other with as many decimals each: what is smaller than 1 % of the largest is about 0. */
function column(values) {
  const most = Math.max(0, ...values.flat().map(Math.abs));
  const decimals = most === 0 ? 0 : Math.min(6, Math.max(0, 2 - Math.floor(Math.log10(most))));
  return (value) => (value === null ? "" : value.toFixed(decimals).replace(/^-(?=[0.]*$)/, "").replace("-", "−"));
}

function signed(value, digits = 2) {
  return (value > 0 ? "+" : "") + value.toFixed(digits).replace("-", "−");
}

// Asking: each question has one place; a newer one makes the older one stale, which is then dropped here and by the server.
const asking = {};
const pending = new Set();
let waiting = 0;

async function ask(name, question, draw) {
  asking[name]?.abort();
  const stop = (asking[name] = new AbortController());
  busy();
  try {
    const reply = await fetch(name, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(question),
      signal: stop.signal,
    });
    if (asking[name] !== stop) return;
    if (reply.status === 429 || reply.status === 204) {
      // The model is busy, or the server took nobody to be waiting.
      await new Promise((done) => setTimeout(done, 800));
      if (asking[name] === stop) await ask(name, question, draw);
      return;
    }
    const answer = await reply.json();
    if (asking[name] !== stop) return;
    if (!reply.ok) throw new Error(answer.error || "The explorer did not understand the question.");
    draw(answer);
    $("error").textContent = "";
  } catch (error) {
    if (error.name === "AbortError" || asking[name] !== stop) return;
    $("error").textContent = error instanceof TypeError ? "The explorer has ended: start it anew." : error.message;
  } finally {
    if (asking[name] === stop) delete asking[name];
    busy();
  }
}

function busy() {
  const still = Object.keys(asking).length + pending.size > 0;
  $("run").setAttribute("aria-busy", String(still));
  clearTimeout(waiting);
  // What is answered at once need not be announced.
  if (still) waiting = setTimeout(() => { $("status").textContent = "Reading …"; }, 500);
  else if ($("status").textContent) $("status").textContent = "";
}

function debounced(wait, act) {
  let timer = 0;
  return () => {
    clearTimeout(timer);
    pending.add(act);
    busy();
    timer = setTimeout(() => {
      pending.delete(act);
      act();
      busy();
    }, wait);
  };
}

const chosenLayer = () => state.about.layers[Number($("layer").value)];
const chosenConcept = () => $("concept").value;

function askRead() {
  ask("read", { text: $("text").value, concept: chosenConcept(), kind: $("kind").value }, (answer) => {
    state.read = answer;
    drawRead();
  });
}

function askAttend() {
  if (!state.about.valued.length) return;
  const head = $("head").value === "" ? null : Number($("head").value);
  const question = { text: $("text").value, layer: chosenLayer(), head, strength: Number($("strength").value) };
  ask("attend", question, (answer) => {
    state.attend = { ...answer, strength: question.strength, head };
    drawAttend();
  });
}

function askContinue() {
  if (!state.about.writes) return;
  const question = {
    text: $("text").value,
    concept: chosenConcept(),
    layer: chosenLayer(),
    strength: Number($("strength").value),
    steering: Number($("steering").value),
    new_tokens: Math.min(state.about.new_tokens, Math.max(1, Math.round(Number($("new-tokens").value)) || 1)),
  };
  ask("continue", question, (answer) => {
    state.go_on = { ...answer, ...question };
    drawContinue();
  });
}

function askCompare() {
  if (!$("other").value.trim()) {
    asking.compare?.abort();
    state.compare = null;
    drawCompare();
    return;
  }
  const question = { text: $("text").value, other: $("other").value, concept: chosenConcept(), kind: $("kind").value };
  ask("compare", question, (answer) => {
    state.compare = answer;
    drawCompare();
  });
}

function askAll() {
  if (!$("text").value.trim()) {
    $("error").textContent = "There is nothing to read: type some words.";
    return;
  }
  askRead();
  askAttend();
  askContinue();
  askCompare();
}

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
  const same = found.untouched === found.changed ? "Both are the same. " : "";
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

// Keeping --------------------------------------------------------------------------------------------------------------

function keep() {
  const settings = Object.fromEntries(
    ["text", "other", "concept", "kind", "head", "strength", "steering", "new-tokens"].map((id) => [id, $(id).value]));
  settings.layer = chosenLayer();
  const { about, read, attend, go_on, compare } = state;
  if (!read) return;
  const run = { when: new Date().toISOString(), settings, model: about.model, read, attend, go_on, compare };
  run.page = sharedPage(run);
  state.kept.push(run);
  drawKept();
  $("status").textContent = "Kept.";
}

function drawKept() {
  $("kept-caption").hidden = state.kept.length > 0;
  show("kept", ...state.kept.map((run, place) => {
    const { page, ...data } = run;
    const name = `emoprobe-${run.when.slice(0, 19).replace(/\D/g, "")}`;
    const about = `${run.settings.concept}, layer ${run.settings.layer}, λ ${run.settings.strength}, steering ${run.settings.steering}`;
    const button = (label, act) => el("button", { type: "button", onclick: act, "aria-label": `${label}: run ${place + 1}` }, label);
    return el("li", {},
      el("span", { class: "title", dir: "auto" }, run.settings.text.slice(0, 90)), el("span", { class: "meta" }, about),
      el("span", { class: "buttons" },
        button("Show again", () => restore(run.settings)),
        button("Save page", () => save(`${name}.html`, page, "text/html")),
        button("Save numbers", () => save(`${name}.json`, JSON.stringify(data, null, 1), "application/json")),
        button("Remove", () => { state.kept.splice(place, 1); drawKept(); $("keep").focus(); })));
  }));
}

function restore(settings) {
  for (const [id, value] of Object.entries(settings)) if (id !== "layer") $(id).value = value;
  $("layer").value = state.about.layers.indexOf(settings.layer);
  label();
  askAll();
  $("text").focus();
}

function save(name, content, type) {
  const link = el("a", { href: URL.createObjectURL(new Blob([content], { type: `${type};charset=utf-8` })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

/** What is shown, as a page of its own: no script, no network, no controls. The browser itself escapes what it writes out. */
function sharedPage(run) {
  const made = document.implementation.createHTMLDocument(`${run.model} · emoprobe`);
  const policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:";
  made.documentElement.lang = "en";
  made.head.prepend(
    el("meta", { charset: "utf-8" }),
    el("meta", { "http-equiv": "Content-Security-Policy", content: policy }),
    el("meta", { name: "viewport", content: "width=device-width, initial-scale=1" }));
  made.head.append(el("style", {}, document.querySelector("style").textContent));
  const shown = $("run").cloneNode(true);
  shown.querySelectorAll(".field").forEach((field) => field.remove());
  shown.removeAttribute("aria-busy");
  if (!run.compare) shown.querySelector("[aria-labelledby=h-compare]").remove();
  else shown.querySelector("#difference").before(el("p", { class: "written", dir: "auto" }, run.settings.other));
  shown.querySelectorAll("section[hidden]").forEach((section) => section.remove());
  const main = el("main", {}, el("p", { class: "eyebrow" }, "emoprobe · a run of the explorer"), el("h1", {}, run.model),
    el("p", { class: "meta" }, `${$("about").textContent} · ${run.when.slice(0, 16).replace("T", " ")} UTC`), shown,
    document.querySelector("footer").cloneNode(true));
  made.body.append(main);
  return `<!doctype html>\n${made.documentElement.outerHTML}\n`;
}

// Beginning ------------------------------------------------------------------------------------------------------------

function label() {
  $("layer-value").textContent = String(chosenLayer());
  $("layer").setAttribute("aria-valuetext", `layer ${chosenLayer()}`);
  $("strength-value").textContent = signed(Number($("strength").value), 1);
  $("steering-value").textContent = signed(Number($("steering").value));
  $("interventions").textContent =
    `λ·V_Q·V_Kᵀ in attention${state.about.writes ? `; ${chosenConcept()} added to the residual stream at layer ${chosenLayer()}` : ""}.`;
}

function toBestLayer() {
  const { best } = state.about.concepts.find((concept) => concept.name === chosenConcept());
  $("layer").value = state.about.layers.indexOf(best);
}

async function begin() {
  const reply = await fetch("about");
  const about = (state.about = await reply.json());
  $("model").textContent = about.model;
  document.title = `${about.model} · emoprobe explorer`;
  $("about").textContent = `${about.blocks} blocks of width ${about.width}, ${about.heads} heads · probes fitted on ${about.corpus}`;
  $("new-tokens").max = about.new_tokens;
  show("concept", ...about.concepts.map(({ name }) => el("option", { value: name }, name)));
  if (about.concepts.some(({ name }) => name === "valence")) $("concept").value = "valence";
  show("kind", ...Object.entries(about.kinds).map(([name, words]) => el("option", { value: name }, words)));
  $("kind").value = "z";
  const heads = Array.from({ length: about.heads }, (_, head) => el("option", { value: head }, String(head)));
  show("head", el("option", { value: "" }, "mean of all"), ...heads);
  $("layer").max = about.layers.length - 1;
  $("strength-field").hidden = $("attention-section").hidden = !about.valued.length;
  $("steering-field").hidden = $("continue-section").hidden = !about.writes;
  toBestLayer();
  label();
  listen();
  askAll();
}

function listen() {
  const attend = debounced(150, askAttend);
  const go_on = debounced(300, askContinue);
  const whole = debounced(400, askAll);
  const compare = debounced(400, askCompare);
  const on = (id, ...acts) => $(id).addEventListener("input", () => { label(); acts.forEach((act) => act()); });
  on("text", whole);
  on("other", compare);
  on("kind", askRead, compare);
  on("concept", toBestLayer, label, whole);
  on("layer", () => state.read && drawRead(), drawCompare, attend, go_on);
  on("strength", attend, go_on);
  on("steering", go_on);
  on("head", attend);
  on("new-tokens", go_on);
  $("keep").addEventListener("click", keep);
  $("controls").addEventListener("submit", (event) => event.preventDefault());
}

begin().catch(() => { $("error").textContent = "The explorer has ended: start it anew."; });
