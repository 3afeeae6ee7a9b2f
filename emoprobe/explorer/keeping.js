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

