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
    for await (const answer of parts(reply)) {
      if (asking[name] !== stop) return;
      if (answer.error || !reply.ok) throw new Error(answer.error || "The explorer did not understand the question.");
      draw(answer);
      $("error").textContent = "";
    }
  } catch (error) {
    if (error.name === "AbortError" || asking[name] !== stop) return;
    $("error").textContent = error instanceof TypeError ? "The explorer has ended: start it anew." : error.message;
  } finally {
    if (asking[name] === stop) delete asking[name];
    busy();
  }
}

/** Yield an answer as far as there is one, a line of JSON each time; most come at once. */
async function* parts(reply) {
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let begun = "";
  for (let read = await reader.read(); !read.done; read = await reader.read()) {
    const lines = (begun + read.value).split("\n");
    begun = lines.pop();
    for (const line of lines) yield JSON.parse(line);
  }
  yield JSON.parse(begun);
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

