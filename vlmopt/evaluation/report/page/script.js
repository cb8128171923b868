"use strict";
(() => {
  const root = document.documentElement;
  const all = (what, where = document) => [...where.querySelectorAll(what)];
  root.classList.add("js");

  // Theme: the system's, until the button is pressed.
  const button = document.getElementById("theme");
  const dark = () => (root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const name = () => { button.textContent = dark() ? "Light" : "Dark"; button.setAttribute("aria-label", `${button.textContent} theme`); };
  button.addEventListener("click", () => { root.dataset.theme = dark() ? "light" : "dark"; name(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", name);
  name();

  // Plots: one metric, one kind of tokens, one kind of latency.
  const chosen = (part) => document.querySelector(`[data-plot="${part}"]`)?.value;
  const draw = () => {
    all("[data-metric]").forEach((plot) => {
      plot.hidden = plot.dataset.metric !== chosen("metric") || ![chosen("axis-0"), chosen("axis-1")].includes(plot.dataset.axis);
    });
    if (chosen("category")) all("[data-category-metric]").forEach((part) => { part.hidden = part.dataset.categoryMetric !== chosen("category"); });
  };
  all("[data-plot]").forEach((choice) => choice.addEventListener("change", draw));
  draw();

  // Tooltips say what a screen reader is told, a line per part.
  const tip = document.getElementById("tip");
  const show = (event) => {
    const mark = event.target.closest?.(".tip");
    if (!mark) { tip.hidden = true; return; }
    tip.textContent = mark.getAttribute("aria-label").replace(": ", "\n").replaceAll("; ", "\n").replace(/\.( |$)/g, "\n").trim();
    tip.hidden = false;
    const at = mark.getBoundingClientRect(), own = tip.getBoundingClientRect();
    const left = at.left + at.width / 2 - own.width / 2;
    tip.style.left = `${Math.max(6, Math.min(left, innerWidth - own.width - 6))}px`;
    tip.style.top = `${at.top > own.height + 12 ? at.top - own.height - 6 : at.bottom + 6}px`;
  };
  ["pointerover", "focusin"].forEach((kind) => document.addEventListener(kind, show));
  addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });
  addEventListener("keydown", (event) => { if (event.key === "Escape") tip.hidden = true; });
})();
