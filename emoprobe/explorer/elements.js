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

