// Moves every control by up to half a cell, so that what it shows begins where a cell does and stands in the middle of a row of cells.
cell => {
  const nearest = (value, wanted) => {
    const apart = (((wanted - value) % cell) + cell) % cell;
    return apart > cell / 2 ? apart - cell : apart;
  };
  const range = document.createRange();
  const shownBy = element => {
    const style = getComputedStyle(element), box = element.getBoundingClientRect();
    if (element.matches("input, textarea, select"))
      return {left: box.left + parseFloat(style.paddingLeft) + parseFloat(style.borderLeftWidth), top: box.top, bottom: box.bottom};
    const walk = document.createTreeWalker(element, NodeFilter.SHOW_TEXT);
    while (walk.nextNode()) {
      if (!walk.currentNode.data.trim() || walk.currentNode.parentElement.closest("option")) continue;
      range.selectNodeContents(walk.currentNode);
      return range.getClientRects()[0];
    }
    return element.querySelector("svg")?.getBoundingClientRect();
  };
  const found = [...document.querySelectorAll("a[href], button, label, input, textarea, select, [role]")]
    .filter(element => element.checkVisibility() && !element.parentElement.closest("a[href], button, label"));
  const moves = found.map(element => [element, shownBy(element)]).filter(([, box]) => box)
    .map(([element, box]) => [element, nearest(box.left, 0), nearest((box.top + box.bottom) / 2, cell / 2)]);
  for (const [element, x, y] of moves) {
    if (getComputedStyle(element).position === "static") element.style.position = "relative";
    const own = getComputedStyle(element).position === "relative" && !element.style.left && !element.style.top;
    if (own) [element.style.left, element.style.top] = [`${x}px`, `${y}px`];
    else element.style.translate = `${x}px ${y}px`;
  }
}
