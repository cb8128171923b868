// Reads the page as it stands: its controls, its lines of text, and its icons with their names. Boxes are [x0, y0, x1, y1] in CSS pixels.
() => {
  const wide = innerWidth, high = innerHeight;
  const corners = r => [r.left, r.top, r.right, r.bottom];
  const join = boxes => boxes.length === 0 ? null : [
    Math.min(...boxes.map(b => b[0])), Math.min(...boxes.map(b => b[1])),
    Math.max(...boxes.map(b => b[2])), Math.max(...boxes.map(b => b[3]))];
  const onScreen = b => b[0] < wide && b[1] < high && b[2] > 0 && b[3] > 0;
  const kinds = [
    ["tab", "[role=tab]"], ["checkbox", "input[type=checkbox], input[type=radio], [role=checkbox], [role=switch]"],
    ["field", "input, textarea, select, [role=textbox], [role=combobox]"], ["button", "button, [role=button]"],
    ["link", "a[href], [role=link]"]];
  const linesOf = root => {
    const found = [], walk = document.createTreeWalker(root, NodeFilter.SHOW_TEXT), range = document.createRange();
    while (walk.nextNode()) {
      if (!walk.currentNode.data.trim() || walk.currentNode.parentElement.closest("style, script, option")) continue;
      range.selectNodeContents(walk.currentNode);
      const boxes = [...range.getClientRects()].filter(r => r.width > 0 && r.height > 0).map(corners);
      if (boxes.length) found.push({text: walk.currentNode.data.trim().replace(/\s+/g, " "), boxes});
    }
    return found;
  };
  const pen = document.createElement("canvas").getContext("2d");
  // What a field shows inside itself, by its font: the DOM has no text nodes for it.
  const written = field => {
    const text = field.tagName === "SELECT" ? field.options[field.selectedIndex]?.text : field.value || field.placeholder;
    if (!text) return null;
    const style = getComputedStyle(field), box = field.getBoundingClientRect(), size = parseFloat(style.fontSize);
    pen.font = `${style.fontStyle} ${style.fontWeight} ${style.fontSize} ${style.fontFamily}`;
    const inner = side => parseFloat(style[`padding${side}`]) + parseFloat(style[`border${side}Width`]);
    const left = box.left + inner("Left") + (field.tagName === "SELECT" ? 4 : 0);
    const right = Math.min(left + pen.measureText(text).width, box.right);
    const middle = field.tagName === "TEXTAREA" ? box.top + inner("Top") + size * 0.65 : (box.top + box.bottom) / 2;
    return {text, boxes: [[left, middle - size * 0.6, right, middle + size * 0.6]]};
  };
  const hit = (owner, x, y) => {
    const top = document.elementFromPoint(x, y);
    return top !== null && owner.contains(top);
  };
  const shown = element => element.checkVisibility({opacityProperty: true, visibilityProperty: true});

  const controls = [], texts = shown(document.body) ? linesOf(document.body) : [];
  for (const element of document.querySelectorAll(kinds.map(([, selector]) => selector).join(","))) {
    if (!shown(element) || element.disabled) continue;
    const [kind] = kinds.find(([, selector]) => element.matches(selector));
    const label = element.labels?.[0] ?? null, own = kind === "field" ? written(element) : null;
    // A label that wraps a checkbox is clicked as well; one that stands above a field is not part of the field.
    const owner = kind === "checkbox" && label ? label : element;
    const lines = linesOf(kind === "field" ? label ?? element : owner);
    const aria = element.getAttribute("aria-label");
    const visible = lines.map(line => line.text).join(" ");
    const name = (aria ?? (visible || element.placeholder || "")).trim();
    const box = corners(owner.getBoundingClientRect());
    if (own) texts.push(own);
    if (!onScreen(box) || box[2] - box[0] < 4 || box[3] - box[1] < 4) continue;
    const [x0, y0, x1, y1] = box, x = (x0 + x1) / 2, y = (y0 + y1) / 2;
    const whole = [[x, y], [x0 + 2, y], [x1 - 2, y], [x, y0 + 2], [x, y1 - 2]].every(([a, b]) => hit(owner, a, b));
    const cut = [owner, ...owner.querySelectorAll("*")].some(e => !e.matches("svg, svg *, input, textarea, select")
      && getComputedStyle(e).overflowX !== "visible" && e.scrollWidth > e.clientWidth);
    const drawn = element.querySelector("svg")?.getBoundingClientRect();
    let textBox = join(lines.flatMap(line => line.boxes)), type = "text";
    if (!textBox && kind === "field" && own && own.text === name) textBox = own.boxes[0];
    if (!textBox && kind !== "field") {
      type = "icon";
      textBox = drawn ? corners(drawn) : null;
    }
    controls.push({name, kind, box, text_box: textBox, data_type: type, whole: whole && !cut && !!name});
  }
  const icons = [...document.querySelectorAll("svg[data-icon]")].filter(shown)
    .map(svg => ({text: svg.dataset.icon, boxes: [corners(svg.getBoundingClientRect())]}));
  const seen = list => list.map(t => ({...t, boxes: t.boxes.filter(onScreen)})).filter(t => t.boxes.length);
  return {controls, texts: seen(texts), icons: seen(icons)};
}
