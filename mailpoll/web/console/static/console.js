// Comfort only: every page works without it.
"use strict";

const all = document.querySelector("[data-all]");
if (all) {
  const boxes = [...document.querySelectorAll('input[name="id"]')];
  all.hidden = false;
  all.addEventListener("change", () => boxes.forEach((box) => { box.checked = all.checked; }));
}

for (const button of document.querySelectorAll("[data-copy]")) {
  const field = document.getElementById(button.dataset.copy);
  button.hidden = !navigator.clipboard;
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(field.value);
    button.textContent = "Copied";
  });
}

// On a phone the list of pages is wider than the screen.
document.querySelector(".side [aria-current]")?.scrollIntoView({ block: "nearest", inline: "center" });

// Browsers leave where it is what is seen in part. Who goes by keys sees the whole of where they are.
document.addEventListener("focusin", ({ target }) => {
  if (target.matches(":focus-visible")) target.scrollIntoView({ block: "nearest", inline: "nearest" });
});

// What is marked live is asked for again and changed in place, so that neither focus, nor a selection,
// nor the place of a reader is lost. Nothing is asked for while nobody looks.
const main = document.querySelector("main");
let waiting;

function renew(old, now) {
  if (old.isEqualNode(now)) return;
  const used = old.contains(document.activeElement);
  if (old.nodeName !== now.nodeName) {
    if (!used) old.replaceWith(now);
  } else if (old.nodeType !== Node.ELEMENT_NODE) {
    old.nodeValue = now.nodeValue;
  } else {
    adopt(old, now);
    const renewed = [...now.childNodes];
    if (renewed.length === old.childNodes.length) {
      [...old.childNodes].forEach((child, index) => renew(child, renewed[index]));
    } else if (!used) old.replaceChildren(...renewed);
  }
}

function adopt(old, now) {
  for (const { name } of [...old.attributes]) if (!now.hasAttribute(name)) old.removeAttribute(name);
  for (const { name, value } of now.attributes) old.setAttribute(name, value);
}

async function refresh() {
  const stale = main.querySelector("[data-stale]");
  try {
    const answer = await fetch(main.dataset.from, {
      headers: { Accept: "text/html" }, redirect: "error", signal: AbortSignal.timeout(10000),
    });
    if (!answer.ok) throw new Error(answer.status);
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    for (const region of main.querySelectorAll("[data-live]")) {
      const now = page.getElementById(region.id);
      if (now) renew(region, now);
    }
    adopt(main, page.querySelector("main"));
    stale.textContent = "";
  } catch {
    stale.textContent = "It is not refreshed: there is no answer, or the login has ended.";
  }
  wait();
}

function wait() {
  clearTimeout(waiting);
  const seconds = Number(main?.dataset.refresh);
  if (seconds && !document.hidden) waiting = setTimeout(refresh, 1000 * seconds);
}

wait();
document.addEventListener("visibilitychange", () => {
  clearTimeout(waiting);
  if (!document.hidden && main?.dataset.refresh) refresh();
});

document.addEventListener("keydown", (event) => {
  if (event.key !== "/" || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.matches("input, textarea, select")) return;
  const field = document.querySelector('input[type="search"]');
  if (field) { event.preventDefault(); field.focus(); field.select(); }
});

// A provider's answer: its code leaves the address and the history before it is posted.
const answer = document.querySelector("[data-go-on]");
if (answer) { history.replaceState(null, "", location.pathname); answer.submit(); }
