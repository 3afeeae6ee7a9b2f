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
