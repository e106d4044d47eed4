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

const reload = document.querySelector("[data-reload]");
if (reload) setTimeout(() => location.reload(), 1000 * Number(reload.dataset.reload));

document.addEventListener("keydown", (event) => {
  if (event.key !== "/" || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.matches("input, textarea, select")) return;
  const field = document.querySelector('input[type="search"]');
  if (field) { event.preventDefault(); field.focus(); field.select(); }
});

// A provider's answer: its code leaves the address and the history before it is posted.
const answer = document.querySelector("[data-go-on]");
if (answer) { history.replaceState(null, "", location.pathname); answer.submit(); }
