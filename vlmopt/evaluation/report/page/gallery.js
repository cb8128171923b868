"use strict";
(() => {
  const all = (what, where = document) => [...where.querySelectorAll(what)];

  // Cards of changed answers, and images enlarged.
  const wanted = () => Object.fromEntries(all("[data-filter]").map((choice) => [choice.dataset.filter, choice.value]));
  const more = document.getElementById("more");
  const step = 12;
  let limit = step;
  const filter = () => {
    const { policy, outcome, category } = wanted();
    let count = 0;
    all(".card").forEach((card) => {
      let any = false;
      all("[data-policy]", card).forEach((figure) => {
        figure.hidden = Boolean((policy && figure.dataset.policy !== policy) || (outcome && figure.dataset.outcome !== outcome));
        any ||= !figure.hidden;
      });
      const fits = any && !(category && card.dataset.category !== category);
      count += fits;
      card.hidden = !fits || count > limit;
    });
    document.getElementById("count").textContent = `${count} sample${count === 1 ? "" : "s"}`;
    more.hidden = count <= limit;
  };
  all("[data-filter]").forEach((choice) => choice.addEventListener("change", () => { limit = step; filter(); }));
  if (more) {
    more.addEventListener("click", () => {
      const next = all(".card:not([hidden])").length;
      limit += step;
      filter();
      all(".card:not([hidden])")[next]?.querySelector(".zoom")?.focus();
    });
    filter();
  }

  const large = document.getElementById("large");
  all(".zoom").forEach((zoom) => zoom.addEventListener("click", () => {
    const [from, to] = [zoom.querySelector("img"), large.querySelector("img")];
    to.src = from.src;
    to.alt = from.alt;
    large.querySelector("p").textContent = from.alt;
    large.showModal();
  }));
  large.querySelector("button").addEventListener("click", () => large.close());
  large.addEventListener("click", (event) => { if (event.target === large) large.close(); });
})();
